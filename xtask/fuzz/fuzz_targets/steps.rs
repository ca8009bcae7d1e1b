//! Fuzz target of the reader `steps`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("steps", bytes));
});
