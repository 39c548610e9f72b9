//! From manifests to what layer 7 proxies execute.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        for (kind, bytes) in karst_controller::fuzz::convert(text).into_iter().flatten() {
            karst_waypoint::fuzz::takes(kind, &bytes);
        }
    }
});
