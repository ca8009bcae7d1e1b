//! Fuzz target of the reader `optimizer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("optimizer", bytes));
});
