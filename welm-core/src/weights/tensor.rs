//! A tensor in a mapped file. All that must hold for it to be read safely is checked once, in [`StoredTensor::new`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::formats::StoredType;
use super::map::FileMap;
use crate::error::{Error, Result};

/// Most dimensions a tensor may have; models have 1 or 2, GGUF allows 4.
const MAX_RANK: usize = 8;

/// A tensor inside a mapped file. Cloning is cheap, and keeps the file mapped.
///
/// No dimension is zero, the size in bytes does not overflow, rows are whole blocks, and the bytes lie
/// inside the file: all of it checked by [`StoredTensor::new`].
#[derive(Debug, Clone)]
pub(crate) struct StoredTensor {
    /// Name in the file.
    pub(crate) name: String,
    /// Type of the elements.
    pub(crate) dtype: StoredType,
    /// Outermost dimension first, row-major: `(rows, cols)` for a matrix.
    pub(crate) shape: Vec<usize>,
    pub(super) map: Arc<FileMap>,
    pub(super) range: Range<usize>, // bytes of `map`
}

impl StoredTensor {
    /// Whether floats lie as in memory: at a multiple of their size, with the machine's byte order. Old writers of
    /// safetensors did not see to that.
    pub(crate) fn is_aligned(&self) -> bool {
        let size = match self.dtype {
            StoredType::F32 => 4,
            StoredType::F16 | StoredType::Bf16 => 2,
            _ => 1,
        };
        cfg!(target_endian = "little") && self.bytes().as_ptr().addr().is_multiple_of(size)
    }

    /// A tensor whose first byte is at `start` of `map`.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if the shape is impossible or the bytes are not all in the file.
    pub(crate) fn new(
        map: &Arc<FileMap>,
        name: &str,
        dtype: StoredType,
        shape: &[usize],
        start: usize,
    ) -> Result<Self> {
        if shape.len() > MAX_RANK {
            let reason = format!("expected at most {MAX_RANK} dimensions, got {}", shape.len());
            return Err(Error::tensor(name, reason));
        }
        if shape.contains(&0) {
            return Err(Error::tensor(name, format!("shape {} holds no element", ShapeText(shape))));
        }
        let cols = shape.last().copied().unwrap_or(1);
        let (block, block_bytes) = (dtype.format().values(), dtype.format().bytes());
        if !cols.is_multiple_of(block) {
            let shape = ShapeText(shape);
            let reason = format!("{dtype:?} needs rows of a multiple of {block} elements, got shape {shape}");
            return Err(Error::tensor(name, reason));
        }
        let end = shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim))
            .and_then(|n| (n / block).checked_mul(block_bytes))
            .and_then(|n_bytes| start.checked_add(n_bytes))
            .filter(|&end| end <= map.len());
        match end {
            Some(end) => Ok(StoredTensor {
                name: name.to_string(),
                dtype,
                shape: shape.to_vec(),
                map: Arc::clone(map),
                range: start..end,
            }),
            None => {
                let reason = format!(
                    "{dtype:?} of shape {} at byte {start} does not fit in the file of {} bytes",
                    ShapeText(shape),
                    map.len()
                );
                Err(Error::tensor(name, reason))
            }
        }
    }

    /// The stored bytes, little endian.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// Rows: the product of all dimensions but the last; a vector is one row.
    pub(crate) fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Elements of a row: the last dimension.
    pub(crate) fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The stored bytes of row `row`: whole blocks, for those who use them as they are.
    ///
    /// # Panics
    ///
    /// If `row` is not below [`rows`](Self::rows).
    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        assert!(row < self.rows(), "row {row} of tensor `{}`, which has {}", self.name, self.rows());
        let format = self.dtype.format();
        let n_bytes = self.cols() / format.values() * format.bytes();
        &self.bytes()[row * n_bytes..][..n_bytes]
    }

    /// Writes row `row` to `out` `// (cols) f32`, dequantised as the format defines.
    ///
    /// # Panics
    ///
    /// If `row` is not below [`rows`](Self::rows) or `out` is not of [`cols`](Self::cols): a caller checks
    /// the tensor's shape before it reads.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols(), "a row of tensor `{}`", self.name);
        self.dtype.format().dequantise(self.row_bytes(row), out);
    }

    /// The whole tensor, dequantised, row-major.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        self.dtype.format().dequantise(self.bytes(), &mut out);
        out
    }

    /// The whole tensor as f32, of which every value must be finite.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] with the place of a value that is not.
    pub(crate) fn finite(&self) -> Result<Vec<f32>> {
        let values = self.to_f32();
        match values.iter().position(|x| !x.is_finite()) {
            Some(i) => {
                Err(Error::tensor(&self.name, format!("expected finite values, got {} at {i}", values[i])))
            }
            None => Ok(values),
        }
    }

    /// Whether the elements are floats or blocks of them, as weights are.
    pub(crate) fn is_float(&self) -> bool {
        self.dtype.format().is_weight()
    }

    /// Checks that the scales of a block format are finite; other formats have none.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] with the place of the first that is not.
    pub(crate) fn check_scales(&self) -> Result<()> {
        let format = self.dtype.format();
        let Some(finite) = format.finite_scales() else { return Ok(()) };
        match self.bytes().chunks_exact(format.bytes()).position(|block| !finite(block)) {
            Some(i) => {
                let first = i * format.values();
                let (row, col) = (first / self.cols(), first % self.cols());
                Err(Error::tensor(
                    &self.name,
                    format!("the scale of row {row} from column {col} on is not finite"),
                ))
            }
            None => Ok(()),
        }
    }

    /// Checks the shape.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] with the expected shape and the tensor's own.
    pub(crate) fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        let reason = format!("expected shape {}, got {}", ShapeText(shape), ShapeText(&self.shape));
        Err(Error::tensor(&self.name, reason))
    }
}

/// Some rows of a stored tensor.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) tensor: StoredTensor, // (more rows, cols)
    pub(crate) first_row: usize,
    pub(crate) n_rows: usize,
}

impl Segment {
    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> u64 {
        (self.tensor.bytes().len() / self.tensor.rows()) as u64
    }
}

/// Lets the memory of segments go that were converted: loading a model then takes what the model takes, and not the file's
/// size as well.
pub(crate) fn release(segments: &[Segment]) {
    for segment in segments {
        let bytes = segment.row_bytes() as usize;
        let start = segment.tensor.range.start + segment.first_row * bytes;
        segment.tensor.map.release(start..start + segment.n_rows * bytes);
    }
}

/// Where each row of a matrix is: row `o` is row `rows[o].1` of the tensor of `rows[o].0`.
pub(crate) fn rows_of(segments: &[Segment]) -> Vec<(&Segment, usize)> {
    segments.iter().flat_map(|s| (s.first_row..s.first_row + s.n_rows).map(move |r| (s, r))).collect()
}

/// The error of row `at` of the part `part`, whose rows these are: it names the tensor that has it.
pub(crate) fn row_error(rows: &[(&Segment, usize)], at: usize, part: &str, reason: &str) -> Error {
    let (segment, row) = rows[at];
    Error::tensor(&segment.tensor.name, format!("row {row}, for `{part}`: {reason}"))
}

/// Prints a shape as `(rows, cols)`.
pub(super) struct ShapeText<'a>(pub(super) &'a [usize]);

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.0.iter().map(usize::to_string).collect();
        write!(f, "({})", dims.join(", "))
    }
}
