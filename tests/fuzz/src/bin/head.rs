//! Layer 7: heads of requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_waypoint::fuzz::head(data);
});
