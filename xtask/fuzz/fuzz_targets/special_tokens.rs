//! Fuzz target of the reader `special_tokens`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("special_tokens", bytes));
});
