//! Fuzz target of the reader `hub_listing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("hub_listing", bytes));
});
