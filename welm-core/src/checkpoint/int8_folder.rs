//! The folder that [`crate::quantize`] writes: its formats, and its matrices as tensors, read and written.
//!
//! It is a Hugging Face folder whose `model.safetensors` has the engine's own tensor names, int8 matrices in tiles
//! ([`crate::weights::tiles`]) as `NAME.weight` and `NAME.scale`, and the metadata entry `format`. It is used where it is
//! mapped, without a copy.

use std::borrow::Cow;

use safetensors::tensor::Dtype;
use welm_cpu::int8::Grouping;
use welm_cpu::isa::{GROUP, LANES};
use welm_cpu::tiles::tile_counts;

use crate::error::{Error, Result};
use crate::weights::formats::StoredType;
use crate::weights::slab::Slab;
use crate::weights::tensor_map::TensorMap;
use crate::weights::tiles::int8::Int8Tiles;

/// The `format` entry of the metadata.
pub(crate) const FORMAT: &str = "welm-int8-2";
/// The one before, all of whose matrices are plain.
pub(crate) const FORMAT_PLAIN: &str = "welm-int8-1";

fn weight_shape(rows: usize, cols: usize) -> [usize; 5] {
    let (down, across) = tile_counts(rows, cols);
    [down, across, GROUP / 4, LANES, 4]
}

fn scale_shape(rows: usize, cols: usize, grouping: Grouping) -> [usize; 3] {
    let (down, across) = tile_counts(rows, cols);
    [down, grouping.groups(across), LANES]
}

/// Finds a matrix of a folder of this format.
pub(crate) fn open_matrix(
    tensors: &TensorMap,
    name: &str,
    rows: usize,
    cols: usize,
    format: &str,
) -> Result<Int8Tiles> {
    let grouping = if format == FORMAT { Grouping::of_cols(cols) } else { Grouping::Plain };
    let weight = tensors.get(&format!("{name}.weight"))?;
    weight.expect_shape(&weight_shape(rows, cols))?;
    let scale = tensors.get(&format!("{name}.scale"))?;
    scale.expect_shape(&scale_shape(rows, cols, grouping))?;
    for (tensor, dtype) in [(weight, StoredType::U8), (scale, StoredType::F16)] {
        if tensor.dtype != dtype {
            let reason = format!("expected element type {dtype:?}, got {:?}", tensor.dtype);
            return Err(Error::tensor(&tensor.name, reason));
        }
    }
    let (weight, scale) = (Slab::from_tensor(weight)?, Slab::from_tensor(scale)?);
    Ok(Int8Tiles { rows, cols, grouping, weight, scale })
}

/// The tensors of a matrix.
pub(super) fn matrix(name: &str, tiles: &Int8Tiles) -> [(String, View); 2] {
    let Int8Tiles { rows, cols, grouping, weight, scale } = tiles;
    let scales = scale.iter().flat_map(|s| s.to_le_bytes()).collect();
    [
        (format!("{name}.weight"), View::new(Dtype::U8, &weight_shape(*rows, *cols), weight.to_vec())),
        (format!("{name}.scale"), View::new(Dtype::F16, &scale_shape(*rows, *cols, *grouping), scales)),
    ]
}

/// A tensor on its way into a file.
pub(super) struct View {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View {
    fn new(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        View { dtype, shape: shape.to_vec(), bytes }
    }

    pub(super) fn f32(values: &[f32]) -> Self {
        View::new(Dtype::F32, &[values.len()], values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
}

impl safetensors::View for View {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        (&self.bytes).into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
