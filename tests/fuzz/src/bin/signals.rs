//! What is carried, as it is read for the metrics of requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_ztunnel::fuzz::signals(data);
});
