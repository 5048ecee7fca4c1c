//! The name of a kernel, which errors and drivers share.

use std::fmt;

/// A kernel: which `.cu` file it is in, and its name there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file's stem, `gemm` for `cuda/gemm.cu`.
    pub file: &'static str,
    /// The entry point.
    pub name: &'static str,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.cu: {}", self.file, self.name)
    }
}
