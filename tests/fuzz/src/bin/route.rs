//! Layer 7: route.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_waypoint::fuzz::route(data);
});
