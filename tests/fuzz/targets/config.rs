//! See `configuration` in `host/src/fuzzing.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vision_proxy::fuzzing::configuration(input));
