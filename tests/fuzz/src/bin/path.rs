//! Layer 7: path.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_waypoint::fuzz::path(data);
});
