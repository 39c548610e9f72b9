//! Gateways: headers of the PROXY protocol.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_waypoint::fuzz::proxy(data);
});
