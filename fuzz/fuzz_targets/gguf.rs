//! Any bytes: parsing returns, and what it accepts holds what a `Gguf` promises.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| m40_gguf::fuzz::check(bytes));
