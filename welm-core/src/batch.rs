//! The rows of one forward pass: tokens, their positions, and the cache slots that they write and read.

/// Tokens of one block of the KV cache.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// Consecutive prompt tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first_row: u32,
    pub(crate) n_rows: u32,
    pub(crate) first_pos: u32,
    /// Where the sequence's block table starts in `block_tables`.
    pub(crate) table_start: u32,
}

/// The rows of one step. The engine fills it and the backends read it. Its vectors are reused from step to step.
///
/// Rows of prompts come first, in spans; then come rows of generated tokens. A token that was generated stays a
/// generated one, also if it is computed again after a preemption. So a backend may compute the two kinds in different
/// ways.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// `(n)` token ids.
    pub(crate) token_ids: Vec<u32>,
    /// `(n)` positions in the row's own sequence; a row sees keys `0..=position`.
    pub(crate) positions: Vec<u32>,
    /// `(n)` slots to which the rows' keys and values are written: `block * BLOCK_TOKENS + offset`.
    pub(crate) slot_mapping: Vec<u32>,
    /// `(n)` index in `block_tables` at which the row's block table starts.
    pub(crate) table_start: Vec<u32>,
    /// The block tables of all sequences, one after the other.
    pub(crate) block_tables: Vec<u32>,
    /// The spans of the prompts' rows, `0..n_prompt_rows()`.
    pub(crate) spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending. After the attention of the last layer, no operation reads the others.
    pub(crate) wanted: Vec<u32>,
}

impl Batch {
    /// A batch that grows to `max_rows` rows and `max_table` table entries without allocating.
    pub(crate) fn with_capacity(max_rows: usize, max_table: usize) -> Self {
        Batch {
            token_ids: Vec::with_capacity(max_rows),
            positions: Vec::with_capacity(max_rows),
            slot_mapping: Vec::with_capacity(max_rows),
            table_start: Vec::with_capacity(max_rows),
            block_tables: Vec::with_capacity(max_table),
            spans: Vec::with_capacity(max_rows),
            wanted: Vec::with_capacity(max_rows),
        }
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.token_ids.len()
    }

    /// Number of rows of prompts.
    #[cfg_attr(not(feature = "kernels"), expect(dead_code, reason = "the CPU computes all rows alike"))]
    pub(crate) fn n_prompt_rows(&self) -> usize {
        self.spans.last().map_or(0, |span| (span.first_row + span.n_rows) as usize)
    }

    /// Empties the batch, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.table_start.clear();
        self.block_tables.clear();
        self.spans.clear();
        self.wanted.clear();
    }

    /// Asks for the logits of a row. Call it for rows in ascending order.
    pub(crate) fn want(&mut self, row: u32) {
        debug_assert!((row as usize) < self.len() && self.wanted.last().is_none_or(|&last| last < row));
        self.wanted.push(row);
    }

    /// Adds tokens `first..first + ids.len()` of a prompt; the blocks of its sequence are `table`. Call it for all
    /// prompts before `push_generated`.
    pub(crate) fn push_prompt(&mut self, ids: &[u32], first: usize, table: &[u32]) {
        self.spans.push(Span {
            first_row: self.len() as u32,
            n_rows: ids.len() as u32,
            first_pos: first as u32,
            table_start: self.block_tables.len() as u32,
        });
        self.push(ids, first, table);
    }

    /// Adds generated tokens, at positions from `first` on; the blocks of their sequence are `table`.
    pub(crate) fn push_generated(&mut self, ids: &[u32], first: usize, table: &[u32]) {
        self.push(ids, first, table);
    }

    fn push(&mut self, ids: &[u32], first: usize, table: &[u32]) {
        let start = self.block_tables.len() as u32;
        self.block_tables.extend_from_slice(table);
        for (i, &id) in ids.iter().enumerate() {
            let pos = first + i;
            let slot = table[pos / BLOCK_TOKENS] as usize * BLOCK_TOKENS + pos % BLOCK_TOKENS;
            self.token_ids.push(id);
            self.positions.push(pos as u32);
            self.slot_mapping.push(slot as u32);
            self.table_start.push(start);
        }
    }

    /// The block table of a row, up to its position: entry `p / BLOCK_TOKENS` is the block that holds position `p`.
    pub(crate) fn table(&self, row: usize) -> &[u32] {
        let start = self.table_start[row] as usize;
        &self.block_tables[start..=start + self.positions[row] as usize / BLOCK_TOKENS]
    }
}
