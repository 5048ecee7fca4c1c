//! The small arrays that tell the kernels of a step about its rows, copied to the device in one copy.

use std::ops::Range;

use welm_kernels::attention::{Span, prefill_tiles};
use welm_kernels::{Buffer, Device, Staging};

use super::graphs::rounded_rows;
use super::table_len;
use crate::backend::Limits;
use crate::backend::cpu::rope::Angles;
use crate::batch::{self, Batch};
use crate::config::{ModelConfig, Rope};
use crate::error::Result;
use crate::options::LoadOptions;

/// How many rows of generated tokens attention computes at a time; its scratch memory is made for these. A step of at
/// most so many rows is recorded.
pub(super) const RECORDED_ROWS: usize = 64;
/// A slot outside of every cache: the key and the value of the row are not written.
const NO_SLOT: u32 = u32::MAX;

/// The arrays of one step. In a step without prompts their addresses depend on the number of rows only.
pub(super) struct Arrays {
    pub(super) token_ids: Buffer<u32>,    // (n)
    pub(super) positions: Buffer<u32>,    // (n)
    pub(super) slot_mapping: Buffer<u32>, // (n)
    pub(super) table_starts: Buffer<u32>, // (n)
    pub(super) wanted: Buffer<u32>,       // (n), of which the first are in use
    pub(super) spans: Buffer<Span>,       // of prompts
    pub(super) tiles: Buffer<[u32; 2]>,   // of prompts
    /// Cosines and sines of each rotary embedding, `(n, rotary_dim / 2)`.
    pub(super) angles: Vec<(Buffer<f32>, Buffer<f32>)>,
    pub(super) block_tables: Buffer<u32>, // (table_len), of which the first are in use
}

/// The current step.
pub(super) struct Step {
    staging: Staging,
    pub(super) arrays: Arrays,
    angles: Vec<Angles>, // of each rotary embedding
    spans: Vec<Span>,
    max_rows: usize,
    max_context: usize,
    table_len: usize,
    /// Rows that are computed: those of the batch, and in a recorded step additional ones up to those of the recording.
    pub(super) n: usize,
    /// How many of them, the first, are rows of prompts.
    pub(super) n_prompt: usize,
    /// How many keys a generated token may attend to: rounded up, so that a recording serves many steps.
    pub(super) max_kv_len: usize,
    /// Whether the step is one that is recorded once and repeated.
    pub(super) is_recorded: bool,
}

impl Step {
    /// Bytes on the device.
    pub(super) fn bytes(config: &ModelConfig, options: &LoadOptions, limits: Limits) -> usize {
        let rows = limits.max_rows;
        let angles = |rope: &Rope| 2 * Staging::bytes_of::<f32>(rows * (rope.rotary_dim / 2));
        5 * Staging::bytes_of::<u32>(rows)
            + Staging::bytes_of::<Span>(rows)
            + Staging::bytes_of::<[u32; 2]>(rows)
            + config.ropes.iter().map(angles).sum::<usize>()
            + Staging::bytes_of::<u32>(table_len(options, limits))
    }

    /// Allocates the memory.
    pub(super) fn new(
        device: &Device,
        config: &ModelConfig,
        options: &LoadOptions,
        limits: Limits,
    ) -> Result<Self> {
        let mut staging = Staging::new(device, Self::bytes(config, options, limits))?;
        let mut angles: Vec<_> = config.ropes.iter().map(|rope| Angles::of(rope, limits)).collect();
        let table_len = table_len(options, limits);
        Ok(Step {
            arrays: lay_out(&mut staging, &mut angles, &Batch::default(), 0, &[], &[], table_len)?,
            staging,
            angles,
            spans: Vec::with_capacity(limits.max_rows),
            max_rows: limits.max_rows,
            max_context: limits.max_context,
            table_len,
            n: 0,
            n_prompt: 0,
            max_kv_len: 0,
            is_recorded: false,
        })
    }

    /// Copies a batch to the device.
    pub(super) fn begin(&mut self, device: &Device, batch: &Batch) -> Result<()> {
        self.n_prompt = batch.n_prompt_rows();
        self.is_recorded = self.n_prompt == 0 && batch.len() <= RECORDED_ROWS;
        self.n = if self.is_recorded { rounded_rows(batch.len(), self.max_rows) } else { batch.len() };
        let span = |s: &batch::Span| Span {
            first_row: s.first_row,
            n_rows: s.n_rows,
            first_pos: s.first_pos,
            table_start: s.table_start,
            reserved: 0,
        };
        self.spans.clear();
        self.spans.extend(batch.spans.iter().map(span));
        let tiles = prefill_tiles(device, &self.spans);
        let last = batch.positions[self.n_prompt..].iter().max().map_or(0, |&pos| pos as usize);
        self.max_kv_len = (last + 1).next_power_of_two().max(512).min(self.max_context);
        let (staging, angles) = (&mut self.staging, &mut self.angles);
        self.arrays = lay_out(staging, angles, batch, self.n, &self.spans, &tiles, self.table_len)?;
        self.staging.upload()?;
        Ok(())
    }

    /// Some of the rows whose logits are wanted, by their place among those.
    pub(super) fn wanted(&self, some: Range<usize>) -> Result<Buffer<u32>> {
        Ok(self.arrays.wanted.part(some.start * size_of::<u32>(), some.len())?)
    }
}

/// Puts the arrays of a batch into the staging memory, for `n` rows.
///
/// Rows after those of the batch have the values of a sequence's first token: they read a block that exists and write
/// none. Nothing reads their results.
fn lay_out(
    staging: &mut Staging,
    angles: &mut [Angles],
    batch: &Batch,
    n: usize,
    spans: &[Span],
    tiles: &[[u32; 2]],
    table_len: usize,
) -> Result<Arrays> {
    staging.clear();
    Ok(Arrays {
        token_ids: staging.push(&batch.token_ids, 0, n)?,
        positions: staging.push(&batch.positions, 0, n)?,
        slot_mapping: staging.push(&batch.slot_mapping, NO_SLOT, n)?,
        table_starts: staging.push(&batch.table_start, 0, n)?,
        wanted: staging.push(&batch.wanted, 0, n)?,
        spans: staging.push(spans, Span::default(), spans.len())?,
        tiles: staging.push(tiles, [0; 2], tiles.len())?,
        angles: angles
            .iter_mut()
            .map(|angles| {
                angles.fill(&batch.positions);
                let (len, (cos, sin)) = (n * angles.pairs(), angles.of_rows(batch.len()));
                Ok((staging.push(cos, 0.0, len)?, staging.push(sin, 0.0, len)?))
            })
            .collect::<Result<_>>()?,
        block_tables: staging.push_last(&batch.block_tables, table_len)?,
    })
}
