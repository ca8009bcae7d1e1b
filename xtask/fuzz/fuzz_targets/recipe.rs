//! Fuzz target of the reader `recipe`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("recipe", bytes));
});
