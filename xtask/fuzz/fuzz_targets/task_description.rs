//! Fuzz target of the reader `task_description`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(molora_fuzz::read("task_description", bytes));
});
