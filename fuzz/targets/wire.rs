#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sccache_dock_fuzz::wire(data));
