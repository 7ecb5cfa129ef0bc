#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| crossdock_fuzz::run("sealed_secret", data));
