//! CUDA kernels of the welm engine, and a safe launcher for each.
//!
//! [`Device`] is a GPU with one stream, [`Buffer`] memory on it. A launcher takes buffers with the shapes that
//! its documentation gives, checks them, and starts its kernels; it returns before they have run, and the
//! next launcher's kernels run after them. [`Buffer::read`] waits for the result.
//!
//! | module | what |
//! |---|---|
//! | [`attention`] | causal attention over a paged cache of keys and values, prefill and decode |
//! | [`gemm`] | matrix products with packed weights, int8, rotated int8 or bf16 |
//! | [`norm`] | rmsnorm and layernorm, int8 and rotated activations, the embedding |
//! | [`rope`] | rotary position embedding with the write to the cache |
//! | [`sample`] | logits to tokens |
//!
//! Modules are layers, which we call floors. This list has the lowest first.
//! Each module imports only from lower ones (`tests/floors.rs` reads the list):
//!
//! ```text
//! kernel                              a kernel's name
//! error
//! driver                              what a launcher needs of a device
//! cuda                                the driver over libcuda
//! device                              a device and its memory
//! staging, norm, sample, attention
//! rope, gemm
//! ```
//!
//! The feature `fatbin` compiles `cuda/*.cu` with nvcc and embeds the result. libcuda is opened by
//! [`Device::open`], not by the linker, so that one binary serves machines with and without a GPU. Without the
//! feature the crate has no device code, and a [`Device`] needs another [`driver::Driver`].
//!
//! Hopper (capability 9.0) has kernels of its own. With [`Device::without_hopper`], or with `WELM_NO_HOPPER=1` in the
//! environment, it runs the kernels of all other devices instead.
//!
//! ```
//! use welm_kernels::norm::{Norm, Rows, norm};
//! use welm_kernels::{Device, Error};
//!
//! # fn main() -> Result<(), Error> {
//! let device = match Device::open(0) {
//!     Ok(device) => device,
//!     Err(error @ (Error::NoCode | Error::NoDevice(_))) => {
//!         println!("{error}");
//!         return Ok(());
//!     }
//!     Err(error) => return Err(error),
//! };
//! let x = device.upload(&[3.0f32, 4.0])?; // (1, 2)
//! let weight = device.upload(&[1.0f32, 1.0])?; // (2)
//! let mut out = device.zeros::<half::bf16>(64)?; // (1, 64): rows are padded to a multiple of 64
//! let rmsnorm = Norm { weight: &weight, bias: None, eps: 0.0, layernorm: false };
//! norm(&device, &rmsnorm, &x, 2, None, 0..1, Rows::Bf16(&mut out), 64)?;
//! let y = out.to_vec()?;
//! assert!((y[0].to_f32() - 3.0 / 12.5f32.sqrt()).abs() < 0.01 && y[2].to_f32() == 0.0);
//! # Ok(())
//! # }
//! ```

pub mod attention;
#[cfg(feature = "fatbin")]
mod cuda;
pub mod device;
pub mod driver;
pub mod error;
pub mod gemm;
mod kernel;
pub mod norm;
pub mod rope;
pub mod sample;
pub mod staging;

pub use device::{Buffer, Device, Element, Graph};
pub use error::{Error, Result};
pub use staging::Staging;
