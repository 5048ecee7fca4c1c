//! Options whose values have names: where a model runs, and the types of its weights, cache and activations.

use std::fmt;
use std::str::FromStr;

use super::table::{Domain, Value};
use crate::error::{Error, Result, quoted};

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The first CUDA device if there is one that can run this model as the other options ask; else the CPU. The log
    /// says which it is, and why a device was not used.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number, from 0. If it cannot be used, for whatever reason, that is an error.
    ///
    /// A Hopper device (compute capability 9.0, such as an H100) computes prompts with kernels of its own. If they are
    /// at fault, set the environment variable `WELM_NO_HOPPER=1`: the kernels of all other devices are used then. They
    /// are slower there, and the bits of prompts change. The log and [`Model::backend`](crate::Model::backend) say so.
    /// `0` and an empty value change nothing; any other value is [`Error::InvalidOption`], with [`Device::Auto`], too.
    Cuda(usize),
}

/// Element type of the weights in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Dtype {
    /// Never less exact than the file.
    ///
    /// f32, f16 and bf16 stay as they are stored. On the CPU, blocks of GGUF files (Q8_0, Q4_0, Q4_K, Q6_K, MXFP4 and
    /// the others) are computed with as they are; nothing is lost. On CUDA, Q8_0, Q5_0 and Q4_0 are held as int8 without
    /// loss, and other blocks are an error: ask for int8 or bf16, which round each weight once more.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16, which has 8 bits of precision. Products are summed in f32.
    Bf16,
    /// 8-bit integers with scales.
    ///
    /// On the CPU, every 64 weights of a row are rotated by a Hadamard matrix, and 128 share one f16 scale. On CUDA, and
    /// in rows whose length is no multiple of 64, the weights are not rotated, and 32 share one scale.
    Int8,
}

/// Element type of the cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CacheDtype {
    /// The most exact type of 16 bits that the device has: [`CacheDtype::F16`] on the CPU, [`CacheDtype::Bf16`] on CUDA.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16, which has 8 bits of precision and the range of f32: half the memory.
    Bf16,
    /// IEEE half precision, which has 11 bits of precision: half the memory. Only on the CPU.
    ///
    /// It cannot hold a key or value above 65,504. A request that has one ends with an error, which says so. Such a model
    /// needs [`CacheDtype::Bf16`].
    F16,
}

/// Precision of activations where they are multiplied by int8 or four-bit weights.
///
/// This is about prompts. Generated tokens on CUDA, and the output projection everywhere, always have 16-bit
/// activations: their time goes into reading weights, so smaller activations would not be faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activations {
    /// The fastest that is at least as exact as llama.cpp's Q8_0: [`Activations::Int8`] on the CPU,
    /// [`Activations::Int16`] on CUDA.
    #[default]
    Auto,
    /// 8-bit integers, with a scale for each group of values. Groups are those of the weights: 32 values, or 128 that
    /// were rotated.
    ///
    /// On CUDA each group of 32 has its own integer sum, which is converted to a float and scaled. On Hopper this is
    /// expected to take longer than the products themselves, and longer than [`Activations::Int16`];
    /// [`Activations::Int8Rotated`] is meant to be the fast int8 there. No GPU has measured either yet.
    Int8,
    /// CUDA only: 8-bit integers with one scale per token, after each 64 values were rotated by a Hadamard matrix.
    /// Weights are rotated likewise, and have one scale per row.
    ///
    /// A product is then a single integer sum, scaled once at its end: int8 tensor cores do not wait for scales in
    /// between. Weights take 6 % less memory. Load such a model from floats: one that is stored as int8 would be rounded
    /// twice.
    Int8Rotated,
    /// 16 bits. On the CPU int16 with a scale for each group: at most half the error of int8, and twice the arithmetic.
    /// On CUDA bfloat16.
    Int16,
}

impl FromStr for Device {
    type Err = Error;

    /// `auto`, `cpu`, `cuda` (the first device) or `cuda:N`.
    fn from_str(text: &str) -> Result<Self> {
        let device = match text.split_once(':') {
            None if text == "auto" => Some(Device::Auto),
            None if text == "cpu" => Some(Device::Cpu),
            None if text == "cuda" => Some(Device::Cuda(0)),
            // Digits only: the integer's own parser takes a plus sign.
            Some(("cuda", ordinal)) if ordinal.bytes().all(|b| b.is_ascii_digit()) => {
                ordinal.parse().ok().map(Device::Cuda)
            }
            _ => None,
        };
        device.ok_or_else(|| {
            Error::option("device", format!("expected {}, got {}", Domain::Device, quoted(text)))
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.pad("auto"),
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(ordinal) => f.pad(&format!("cuda:{ordinal}")),
        }
    }
}

impl Value for Device {
    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// Gives an enum the names of its values: `FromStr`, `Display` by the first name of a value, and its domain.
macro_rules! named {
    ($Type:ident, $option:literal, $($name:literal => $value:ident,)*) => {
        impl $Type {
            /// Each name with its value. A value's first name is the one that is displayed.
            const NAMES: &'static [(&'static str, Self)] = &[$(($name, $Type::$value)),*];

            /// The names, as the table of options has them.
            pub(super) fn domain() -> Domain {
                let is_first = |&&(name, value): &&(&str, Self)| value.name() == name;
                let (names, aliases): (Vec<_>, Vec<_>) = Self::NAMES.iter().partition(is_first);
                let only = |pairs: Vec<&(&'static str, Self)>| pairs.into_iter().map(|&(name, _)| name).collect();
                Domain::Named { names: only(names), aliases: only(aliases) }
            }

            fn name(self) -> &'static str {
                Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |&(name, _)| name)
            }
        }

        impl FromStr for $Type {
            type Err = Error;

            #[doc = concat!("Reads one of these names:", $(" `", $name, "`",)*)]
            fn from_str(text: &str) -> Result<Self> {
                let named = Self::NAMES.iter().find(|(name, _)| *name == text);
                named.map(|&(_, value)| value).ok_or_else(|| {
                    let reason = format!("expected {}, got {}", Self::domain(), quoted(text));
                    Error::option($option, reason)
                })
            }
        }

        impl fmt::Display for $Type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl Value for $Type {
            fn text(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    };
}

named! { Dtype, "dtype",
    "auto" => Auto,
    "f32" => F32,
    "bf16" => Bf16,
    "int8" => Int8,
    "float32" => F32,
    "bfloat16" => Bf16,
}

named! { CacheDtype, "cache_dtype",
    "auto" => Auto,
    "f32" => F32,
    "bf16" => Bf16,
    "f16" => F16,
    "float32" => F32,
    "bfloat16" => Bf16,
    "float16" => F16,
}

named! { Activations, "activations",
    "auto" => Auto,
    "int8" => Int8,
    "int8_rotated" => Int8Rotated,
    "int16" => Int16,
    "int8-rotated" => Int8Rotated,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each spelling gives its value, and what a value is displayed as gives it back.
    fn spelled<T: FromStr<Err = Error> + fmt::Display + fmt::Debug + PartialEq>(
        option: &str,
        right: &[(&str, T)],
        wrong: &[&str],
        expected: &str,
    ) {
        for (text, value) in right {
            assert_eq!(text.parse().as_ref(), Ok(value));
            assert_eq!(value.to_string().parse().as_ref(), Ok(value));
        }
        for text in wrong {
            let want = format!("option `{option}`: expected {expected}, got {text:?}");
            assert_eq!(text.parse::<T>().unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn names_of_values_are_read_as_they_are_written() {
        let devices = [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:12", Device::Cuda(12)),
        ];
        let wrong = ["", "CPU", "gpu", "cuda:", "cuda:+1", "cuda:-1", "cuda:x", "cpu:0", "cuda:0:1", " cpu"];
        spelled("device", &devices, &wrong, "auto, cpu, cuda or cuda:N");
        let more_than_usize = "cuda:99999999999999999999999";
        spelled("device", &devices, &[more_than_usize], "auto, cpu, cuda or cuda:N");

        let wrong = ["", "F32", "f16", "int4"];
        spelled("dtype", Dtype::NAMES, &wrong, "auto, f32, bf16 or int8");
        spelled("cache_dtype", CacheDtype::NAMES, &["Auto", "int8", ""], "auto, f32, bf16 or f16");
        let wrong = ["", "bf16", "int8 rotated"];
        spelled("activations", Activations::NAMES, &wrong, "auto, int8, int8_rotated or int16");

        let shown = [Dtype::Auto, Dtype::F32, Dtype::Bf16, Dtype::Int8].map(|x| x.to_string());
        assert_eq!(shown, ["auto", "f32", "bf16", "int8"]);
        let all =
            [CacheDtype::Auto, CacheDtype::F32, CacheDtype::Bf16, CacheDtype::F16].map(|x| x.to_string());
        assert_eq!(all, ["auto", "f32", "bf16", "f16"]);
        let all = [Activations::Auto, Activations::Int8, Activations::Int8Rotated, Activations::Int16];
        assert_eq!(all.map(|x| x.to_string()), ["auto", "int8", "int8_rotated", "int16"]);
        assert_eq!(Device::Cuda(0).to_string(), "cuda:0");
    }
}
