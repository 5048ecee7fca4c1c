//! The rows of one forward pass, as kernels see them.

use crate::isa::LANES;

/// Tokens of one block of the KV cache: a vector of scores is the keys of one block.
pub const BLOCK_TOKENS: usize = LANES;

/// Where rows are in their sequences, and where the keys and values of these lie.
#[derive(Debug, Clone, Copy)]
pub struct BatchRows<'a> {
    /// `(n)` positions in the row's own sequence.
    pub positions: &'a [u32],
    /// `(n)` where the row's key and value go: `block * BLOCK_TOKENS + offset`.
    pub slot_mapping: &'a [u32],
    /// `(n)` where the row's block table starts in `block_tables`.
    pub table_start: &'a [u32],
    /// The sequences' block tables, one after the other.
    pub block_tables: &'a [u32],
}

impl<'a> BatchRows<'a> {
    /// The block table of a row: entry `p / BLOCK_TOKENS` holds position `p`.
    pub fn table(self, row: usize) -> &'a [u32] {
        let start = self.table_start[row] as usize;
        &self.block_tables[start..=start + self.positions[row] as usize / BLOCK_TOKENS]
    }
}
