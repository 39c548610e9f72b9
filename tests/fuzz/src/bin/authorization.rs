//! Answers of providers of external authorization.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_waypoint::fuzz::authorization(data);
});
