//! Fuzz target of the reader `config_encoder`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("config_encoder", bytes));
});
