//! Packets of the node agent.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_ztunnel::fuzz::zds(data);
});
