//! Golden-vector reading and tolerances for the tests of molora.
