//! Fuzz target of the reader `heads`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("heads", bytes));
});
