//! Fuzz target of the reader `summary`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("summary", bytes));
});
