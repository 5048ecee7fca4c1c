//! Activations on the device, and the forms that products read.

use std::ops::Range;

use half::bf16;
use welm_kernels::gemm::{ALIGN, Input, Weight};
use welm_kernels::norm::{self, GROUP, Quantized, Rotated, Rows};
use welm_kernels::{Buffer as Memory, Device};

use crate::backend::Role;
use crate::error::Result;
use crate::options::{Activations, LoadOptions};

/// The activations that a layer's int8 weights are multiplied with. Other weights are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// bf16 for all rows.
    Bf16,
    /// Prompts in int8 with a scale for every 32 columns, generated tokens in bf16.
    Int8,
    /// Rotated: prompts in int8 with a scale for each row, generated tokens in bf16.
    Rotated,
}

impl Form {
    pub(super) fn of(options: &LoadOptions) -> Form {
        match options.activations {
            Activations::Auto | Activations::Int16 => Form::Bf16,
            Activations::Int8 => Form::Int8,
            Activations::Int8Rotated => Form::Rotated,
        }
    }

    /// Whether a weight is multiplied with activations in this form.
    pub(super) fn fits(self, w: &Weight) -> bool {
        match self {
            Form::Bf16 => false,
            Form::Int8 => w.is_int8(),
            Form::Rotated => w.is_rotated(),
        }
    }
}

/// Rows of activations in a form other than plain bf16.
pub(super) enum Converted {
    Int8 {
        q: Memory<i8>,      // (max_rows, stride)
        scale: Memory<f32>, // (stride / 32, scale_stride)
        scale_stride: usize,
    },
    Rotated {
        q: Memory<i8>,      // (max_rows, stride), prompts
        scale: Memory<f32>, // (max_rows)
        wide: Memory<bf16>, // (max_rows, stride), generated tokens
    },
}

impl Converted {
    pub(super) fn bytes(form: Form, max_rows: usize, stride: usize) -> usize {
        let q = max_rows * stride;
        match form {
            Form::Bf16 => 0,
            Form::Int8 => q + max_rows.next_multiple_of(4) * (stride / GROUP) * size_of::<f32>(),
            Form::Rotated => q + max_rows * size_of::<f32>() + q * size_of::<bf16>(),
        }
    }

    /// Allocates memory for rows, if the form is not plain bf16.
    pub(super) fn new(device: &Device, form: Form, max_rows: usize, stride: usize) -> Result<Option<Self>> {
        let size = max_rows * stride;
        Ok(match form {
            Form::Bf16 => None,
            Form::Int8 => {
                let scale_stride = max_rows.next_multiple_of(4);
                let scale = device.uninit(scale_stride * (stride / GROUP))?;
                Some(Converted::Int8 { q: device.uninit(size)?, scale, scale_stride })
            }
            Form::Rotated => {
                let (scale, wide) = (device.uninit(max_rows)?, device.uninit(size)?);
                Some(Converted::Rotated { q: device.uninit(size)?, scale, wide })
            }
        })
    }

    /// The rows of prompts or of generated tokens as the input of a product; `None` if those are plain bf16.
    pub(super) fn input(&self, prompts: bool) -> Option<Input<'_>> {
        match self {
            Converted::Int8 { q, scale, scale_stride } => {
                prompts.then_some(Input::Int8 { q, scale, scale_stride: *scale_stride })
            }
            Converted::Rotated { q, scale, .. } if prompts => Some(Input::RotatedInt8 { q, scale }),
            Converted::Rotated { wide, .. } => Some(Input::Rotated(wide)),
        }
    }

    /// Where a normalisation writes the rows of prompts or of generated tokens; `None` if those are plain bf16.
    pub(super) fn target(&mut self, prompts: bool) -> Option<Rows<'_>> {
        match self {
            Converted::Int8 { q, scale, scale_stride } => {
                prompts.then_some(Rows::Int8(Quantized { q, scale, scale_stride: *scale_stride }))
            }
            Converted::Rotated { q, scale, .. } if prompts => Some(Rows::Rotated(Rotated::Int8 { q, scale })),
            Converted::Rotated { wide, .. } => Some(Rows::Rotated(Rotated::Bf16(wide))),
        }
    }

    /// Converts rows, all of prompts or all of generated tokens.
    pub(super) fn convert(
        &mut self,
        device: &Device,
        x: &Buffer,
        rows: Range<usize>,
        prompts: bool,
    ) -> Result<()> {
        match self.target(prompts) {
            Some(Rows::Int8(to)) => norm::quantize(device, x.bf16s(), rows, x.stride(), to)?,
            Some(Rows::Rotated(to)) => norm::rotate(device, x.bf16s(), rows, x.stride(), to)?,
            Some(Rows::Bf16(_)) | None => {}
        }
        Ok(())
    }
}

/// Activations, `(max_rows, stride)`.
pub(crate) struct Buffer {
    data: Data,
    pub(super) rows: usize, // in use
    pub(super) cols: usize,
    /// Memory that a normalisation can write instead of `data`, and whether it did.
    pub(super) converted: Option<Converted>,
    pub(super) is_converted: bool,
    host: Vec<f32>, // (max_rows, cols) of logits
}

enum Data {
    /// Rows without a gap between them.
    F32(Memory<f32>),
    /// The stride is a multiple of 128, and the columns after those of the buffer are zero.
    Bf16(Memory<bf16>),
    /// A kernel that fuses two operations never writes it.
    None,
}

impl Buffer {
    pub(super) fn bytes(max_rows: usize, cols: usize, role: Role) -> u64 {
        let bytes = match role {
            Role::Residual | Role::Logits => size_of::<f32>() * cols,
            Role::Normed | Role::Hidden => size_of::<bf16>() * cols.next_multiple_of(ALIGN),
            Role::Gates => 0,
        };
        (max_rows * bytes) as u64
    }

    pub(super) fn new(device: &Device, form: Form, max_rows: usize, cols: usize, role: Role) -> Result<Self> {
        let stride = cols.next_multiple_of(ALIGN);
        let data = match role {
            Role::Residual | Role::Logits => Data::F32(device.zeros(max_rows * cols)?),
            Role::Normed | Role::Hidden => Data::Bf16(device.zeros(max_rows * stride)?),
            Role::Gates => Data::None,
        };
        let form = if role == Role::Normed { form } else { Form::Bf16 };
        let host = if role == Role::Logits { vec![0.0; max_rows * cols] } else { Vec::new() };
        let converted = Converted::new(device, form, max_rows, stride)?;
        Ok(Buffer { data, rows: 0, cols, converted, is_converted: false, host })
    }

    /// Columns of a row of bf16.
    pub(super) fn stride(&self) -> usize {
        self.cols.next_multiple_of(ALIGN)
    }

    pub(super) fn is_f32(&self) -> bool {
        matches!(self.data, Data::F32(_))
    }

    pub(super) fn f32s(&self) -> &Memory<f32> {
        let Data::F32(data) = &self.data else { unreachable!("forward gives a residual or logits here") };
        data
    }

    pub(super) fn f32s_mut(&mut self) -> &mut Memory<f32> {
        let Data::F32(data) = &mut self.data else { unreachable!("forward gives a residual or logits here") };
        data
    }

    pub(super) fn bf16s(&self) -> &Memory<bf16> {
        let Data::Bf16(data) = &self.data else { unreachable!("forward gives a hidden buffer here") };
        data
    }

    pub(super) fn bf16s_mut(&mut self) -> &mut Memory<bf16> {
        let Data::Bf16(data) = &mut self.data else { unreachable!("forward gives a hidden buffer here") };
        data
    }

    /// The rows in use, on the host.
    pub(super) fn read(&mut self) -> Result<&mut [f32]> {
        let len = self.rows * self.cols;
        let Data::F32(data) = &self.data else { unreachable!("forward reads a residual or logits") };
        // Memory for logits is there from the start. A residual is read only to find a fault.
        if self.host.len() < len {
            self.host.resize(len, 0.0);
        }
        data.read(0, &mut self.host[..len])?;
        Ok(&mut self.host[..len])
    }
}
