//! Tests to come in this very change.
