//! DNS packets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    karst_ztunnel::fuzz::dns(data);
});
