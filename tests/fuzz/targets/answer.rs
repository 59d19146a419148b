//! See `answer` in `host/src/fuzzing.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vision_proxy::fuzzing::answer(input));
