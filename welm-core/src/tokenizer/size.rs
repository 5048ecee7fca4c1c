//! How much memory vocabularies take: what [`crate::Model::estimate`] counts of a tokenizer.

use std::collections::HashMap;

/// Bytes that the system's allocator takes for so many.
pub(super) fn allocated(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16).max(32) }
}

/// Bytes of a map of `n` entries: a power of two of places, each with a byte of its hash, of which seven in eight may be
/// taken.
pub(super) fn of_map<T>(n: usize) -> usize {
    let places = if n == 0 { 0 } else { (n * 8 / 7).max(3).next_power_of_two() };
    allocated(places * (size_of::<T>() + 1))
}

/// Bytes of a map from texts, with these.
pub(super) fn of_texts(texts: &HashMap<String, u32>) -> usize {
    of_map::<(String, u32)>(texts.len()) + texts.keys().map(|text| allocated(text.len())).sum::<usize>()
}
