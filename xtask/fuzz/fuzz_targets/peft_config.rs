//! Fuzz target of the reader `peft_config`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("peft_config", bytes));
});
