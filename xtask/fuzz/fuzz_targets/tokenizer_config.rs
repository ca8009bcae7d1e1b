//! Fuzz target of the reader `tokenizer_config`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("tokenizer_config", bytes));
});
