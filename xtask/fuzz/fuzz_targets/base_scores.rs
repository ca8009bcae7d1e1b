//! Fuzz target of the reader `base_scores`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("base_scores", bytes));
});
