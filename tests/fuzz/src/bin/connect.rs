//! CONNECT: authority and headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_ztunnel::fuzz::connect(data);
});
