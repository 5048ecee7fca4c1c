//! What one forward pass computes: rows of tokens, where their keys and values go, and what they see.

/// Tokens of one block of the KV cache.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// One step's rows. Made by the engine, read by the backends; its vectors are reused from step to step.
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
        }
    }

    /// Rows.
    pub(crate) fn len(&self) -> usize {
        self.token_ids.len()
    }

    /// Empties the batch, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.table_start.clear();
        self.block_tables.clear();
    }

    /// Adds tokens `first..first + ids.len()` of a sequence whose blocks are `table`.
    pub(crate) fn push(&mut self, ids: &[u32], first: usize, table: &[u32]) {
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
        let start = self.table_start[row] as usize;
        &self.block_tables[start..=start + self.positions[row] as usize / BLOCK_TOKENS]
    }
}
