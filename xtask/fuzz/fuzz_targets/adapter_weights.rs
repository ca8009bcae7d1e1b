//! Fuzz target of the reader `adapter_weights`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("adapter_weights", bytes));
});
