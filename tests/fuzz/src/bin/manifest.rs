//! Manifest documents.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Err(problems) = karst_manifest::parse::file("f.yaml".as_ref(), text)
    {
        assert!(!problems.is_empty());
    }
});
