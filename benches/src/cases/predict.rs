//! What fraction of its limit a kernel is predicted to reach on an H100, so that a measurement can be wrong.
//!
//! A launch is predicted to take
//!
//! ```text
//! start of each kernel + round trips to memory, one after another
//!     + the longer of: bytes / rate of memory,  operations / (rate of products * share * fill)
//!     + bytes of the result that are written when no block is left to multiply meanwhile
//! ```
//!
//! The rate of memory is that of a copy, or what the resident blocks keep under way in one latency, if that is less.
//! "Fill" is how full the waves of blocks are on 132 multiprocessors. Blocks, blocks a multiprocessor and bytes under
//! way are the launchers' grids, the kernels' launch bounds and the loads that stand before the first wait in the
//! machine code; 132 multiprocessors and the peak rates are of NVIDIA's data sheet (H100 SXM5). The other figures are
//! assumptions, each with its reason: no GPU has measured any of this.

use welm_kernels::gemm::{narrow_tiles, split_along_k};

use super::{Epilogue, Form, Heads, Limit, Operands, Shape};

const MULTIPROCESSORS: f64 = 132.0;
/// Bytes per second of a copy: 0.9 of 3.35 TB/s.
const COPY: f64 = 3.0e12;
/// Operations per second of large products: 0.75 of 989 and of 1,979 T/s, as the power limit leaves.
const BF16: f64 = 7.4e14;
const INT8: f64 = 1.48e15;
/// Seconds from the end of a kernel of a graph to the first instructions of the next.
const START: f64 = 1.5e-6;
/// Seconds of a load from memory under load.
const LATENCY: f64 = 0.8e-6;
/// Bytes per second that one multiprocessor can take: 64 a cycle.
const PORT: f64 = 64.0 * 1.7e9;
/// Of the copy's rate, what a loop over memory reaches that computes, too.
const STEADY: f64 = 0.95;

/// What a shape starts.
struct Launch {
    kernels: f64,
    /// Of the kernel that takes longest.
    blocks: usize,
    /// That a multiprocessor holds.
    resident: usize,
    /// Bytes that a block keeps under way.
    in_flight: usize,
    /// Loads that wait for one another, the first included.
    trips: f64,
    /// Of the rate of products, what a multiprocessor's loop reaches.
    share: f64,
    /// Bytes that are read or written after the last product.
    serial_bytes: usize,
}

impl Launch {
    /// A kernel that memory bounds.
    fn of_memory(blocks: usize, resident: usize, in_flight: usize, trips: f64) -> Launch {
        Launch { kernels: 1.0, blocks, resident, in_flight, trips, share: 1.0, serial_bytes: 0 }
    }

    fn seconds(&self, bytes: f64, ops: f64, ops_rate: f64) -> f64 {
        let slots = MULTIPROCESSORS * self.resident as f64;
        let blocks = self.blocks as f64;
        let per_block = (self.in_flight as f64 / LATENCY).min(PORT);
        let memory = bytes / (COPY * STEADY).min(per_block * blocks.min(slots));
        let fill = blocks / ((blocks / slots).ceil() * slots);
        let products = ops / (ops_rate * self.share * fill);
        let serial = self.serial_bytes as f64 / COPY;
        self.kernels * START + self.trips * LATENCY + memory.max(products) + serial
    }
}

/// A matrix product of `n` rows.
fn product(operands: Operands, epilogue: Epilogue, n: usize, rows: usize) -> Launch {
    let int8_weights = operands != Operands::W16A16;
    let group_bytes = if int8_weights { 17 * 2 } else { 32 * 2 }; // of 32 columns of a row
    if n <= 32 && !matches!(operands, Operands::W8A8 | Operands::R8A8) {
        // 16 rows a block, or 32 where weights have to serve more tokens: 64 to 128 bytes a thread are under way.
        let (tokens, strips) = if n <= 8 { (8, 1) } else { (16, if int8_weights { 2 } else { 1 }) };
        let blocks = n.div_ceil(tokens) * rows.div_ceil(16 * strips);
        return Launch::of_memory(blocks, if n <= 8 { 3 } else { 2 }, 256 * 64, 2.0);
    }
    let result = if epilogue == Epilogue::Add { 8 } else { 2 };
    let exact = n <= super::product::FEW; // mma.sync in the order of the few
    if exact || operands == Operands::R8A16 {
        // Of so many stages of two groups, all but one or two are on their way.
        let stages = if operands == Operands::W16A16 { 3 } else { 4 };
        let (tiles, in_flight) = (n.div_ceil(64) * rows.div_ceil(128), (2 * stages - 3) * 128 * group_bytes);
        // Split, there is a block for each of 8 segments of K. Their sums, f32, are written, and read by a second
        // kernel: after the last product, and as if the L2 cache did not hold them.
        let split = split_along_k(n, rows, MULTIPROCESSORS as usize);
        let resident = if operands == Operands::W8A16 { 2 } else { 3 };
        let (blocks, resident, kernels, sums) =
            if split { (8 * tiles, resident, 2.0, 2 * 4 * 8) } else { (tiles, 1, 1.0, 0) };
        return Launch {
            kernels,
            share: 0.5, // mma.sync reaches about half of what wgmma does on Hopper
            serial_bytes: (result + sums) * n.div_ceil(64) * 64 * rows,
            ..Launch::of_memory(blocks, resident, in_flight, 1.0 + 2.0 * kernels)
        };
    }
    let blocks = |tokens: usize| n.div_ceil(tokens) * rows.div_ceil(128);
    let tokens = match operands {
        Operands::W8A8 => 128,
        _ if narrow_tiles(n, rows, MULTIPROCESSORS as usize) => 128,
        _ => 256,
    };
    let share = match operands {
        Operands::W8A16 => 0.75, // weights become bf16 beside the products
        Operands::W8A8 => 0.25, // four cycles of conversion and scaling for one of products; see int8-modes.md
        _ => 0.85,
    };
    let share = if tokens == 128 { share * 0.9 } else { share }; // a tile of half the size reads more for a product
    // The last wave's tiles have nothing to hide their stores.
    let last = blocks(tokens).min(MULTIPROCESSORS as usize);
    let serial_bytes = result * last * tokens * 128;
    Launch { share, serial_bytes, ..Launch::of_memory(blocks(tokens), 1, 4 * 128 * group_bytes * 2, 3.0) }
}

impl Shape {
    /// The fraction of its limit that it is predicted to reach on an H100.
    pub fn predicted(&self) -> f64 {
        let launch = match *self {
            Shape::Decode { heads: Heads { n_heads, n_kv_heads, head_dim }, batch, kv_len } => {
                // A block has 512 keys of the query heads that share them, 16 at most; each of 4 warps has two blocks
                // of K and V under way. Where rows are cut, a second kernel adds the parts.
                let splits = kv_len.div_ceil(512);
                let blocks = batch * n_kv_heads * (n_heads / n_kv_heads).div_ceil(16) * splits;
                let resident = if head_dim > 96 { 2 } else { 3 };
                let in_flight = 4 * 2 * 2 * 16 * head_dim * 2;
                let parts = if splits > 1 { 2.0 } else { 1.0 };
                Launch { kernels: parts, ..Launch::of_memory(blocks, resident, in_flight, 3.0 + parts) }
            }
            // 128 rows of a head a block; half of the rate, as softmax stands between two products.
            Shape::Prefill { heads, n } => {
                let blocks = n.div_ceil(128) * heads.n_heads;
                Launch { share: 0.55, ..Launch::of_memory(blocks, 1, 1 << 17, 4.0) }
            }
            Shape::Product { operands, epilogue, n, rows, .. } => product(operands, epilogue, n, rows),
            // All of x, weight and bias; one latency more for the reduction's barriers and divisions.
            Shape::Norm { n, dim, .. } => Launch::of_memory(n, 3, 12 * dim, 2.0),
            Shape::Convert { form: Form::RotatedInt8, n, .. } => Launch::of_memory(n, 4, 256 * 8, 3.0),
            Shape::Convert { n, dim, .. } => Launch::of_memory(n * dim.div_ceil(1024), 6, 256 * 8, 1.0),
            // A warp a head.
            Shape::Rope { heads, n } => {
                let blocks = n * (heads.n_heads + 2 * heads.n_kv_heads).div_ceil(4);
                Launch::of_memory(blocks, 8, 4 * heads.head_dim * 2, 2.0)
            }
            Shape::TopK { n, vocab, .. } => {
                let launch = Launch::of_memory(n * vocab.div_ceil(8192), 1, 512 * 64, 4.0);
                Launch { kernels: 2.0, ..launch }
            }
        };
        let (bytes, ops) = (self.bytes() as f64, self.ops() as f64);
        let (best, ops_rate) = match self.limit() {
            Limit::Copy => (bytes / COPY, BF16),
            Limit::Bf16 => (ops / BF16, BF16),
            Limit::Int8 => (ops / INT8, INT8),
        };
        best / launch.seconds(bytes, ops, ops_rate)
    }
}
