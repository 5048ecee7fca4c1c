//! What one forward pass computes: rows of tokens, where their keys and values go, and what they see.

pub(crate) use welm_cpu::batch::BLOCK_TOKENS;
use welm_cpu::batch::BatchRows;

/// Consecutive prompt tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first_row: u32,
    pub(crate) n_rows: u32,
    pub(crate) first_pos: u32,
    /// Where the sequence's block table starts in `block_tables`.
    pub(crate) table_start: u32,
}

/// One step's rows. Made by the engine, read by the backends; its vectors are reused from step to step.
///
/// Rows of prompts come first, in spans, then those of generated tokens. A token is a prompt's or a generated one for
/// good, also when it is computed again, so that a backend may compute the two in different ways.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// `(n)` token ids.
    pub(crate) token_ids: Vec<u32>,
    /// `(n)` positions in the row's own sequence; a row sees keys `0..=position`.
    pub(crate) positions: Vec<u32>,
    /// `(n)` where the row's key and value go: `block * BLOCK_TOKENS + offset`.
    pub(crate) slot_mapping: Vec<u32>,
    /// `(n)` where the row's block table starts in `block_tables`.
    pub(crate) table_start: Vec<u32>,
    /// The sequences' block tables, one after the other.
    pub(crate) block_tables: Vec<u32>,
    /// The prompts' rows, `0..n_prompt_rows()`.
    pub(crate) spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending. Behind the attention of the last layer nothing reads the others.
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

    /// Rows.
    pub(crate) fn len(&self) -> usize {
        self.token_ids.len()
    }

    /// Rows of prompts.
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

    /// Asks for the logits of a row; rows in ascending order.
    pub(crate) fn want(&mut self, row: u32) {
        debug_assert!((row as usize) < self.len() && self.wanted.last().is_none_or(|&last| last < row));
        self.wanted.push(row);
    }

    /// Adds tokens `first..first + ids.len()` of the prompt of a sequence whose blocks are `table`; before all
    /// generated ones.
    pub(crate) fn push_prompt(&mut self, ids: &[u32], first: usize, table: &[u32]) {
        self.spans.push(Span {
            first_row: self.len() as u32,
            n_rows: ids.len() as u32,
            first_pos: first as u32,
            table_start: self.block_tables.len() as u32,
        });
        self.push(ids, first, table);
    }

    /// Adds generated tokens.
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

    /// The block table of a row: entry `p / BLOCK_TOKENS` holds position `p`.
    pub(crate) fn table(&self, row: usize) -> &[u32] {
        self.rows().table(row)
    }

    /// What kernels see of it.
    pub(crate) fn rows(&self) -> BatchRows<'_> {
        BatchRows {
            positions: &self.positions,
            slot_mapping: &self.slot_mapping,
            table_start: &self.table_start,
            block_tables: &self.block_tables,
        }
    }
}
