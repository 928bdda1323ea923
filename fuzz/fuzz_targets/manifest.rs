//! Any text: it becomes a catalog or a problem with its place, and harms no other manifest.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| m40_manifest::fuzz::check(bytes));
