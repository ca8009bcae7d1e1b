//! Fuzz target of the reader `journal`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("journal", bytes));
});
