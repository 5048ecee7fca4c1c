//! The one error type of the crate.

use crate::kernel::Kernel;

/// What can go wrong between a launcher's call and its result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The crate was built without the feature `fatbin`: it holds no device code.
    #[error("built without device code; enable the feature `fatbin`")]
    NoCode,
    /// libcuda, or a device, is missing, or the driver is too old.
    #[error("no CUDA device: {0}")]
    NoDevice(String),
    /// An environment variable has a value that is not allowed.
    #[error("environment variable {name}: expected {expected}, got {got:?}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// The device has no memory for this.
    #[error("device memory: {requested} bytes requested, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes free.
        free: u64,
    },
    /// A driver call or a launch failed; the device can still be used.
    #[error("{call}: {reason}")]
    Driver {
        /// The call, or the kernel.
        call: String,
        /// What the driver said.
        reason: String,
    },
    /// The context is lost: every later call fails with this error.
    #[error("device context lost: {0}")]
    ContextLost(String),
    /// An operand has another shape than the operation asks for.
    #[error("{operation}: {operand}: expected {expected}, got {got}")]
    Shape {
        /// The launcher.
        operation: &'static str,
        /// The operand.
        operand: &'static str,
        /// What would be right.
        expected: String,
        /// What came.
        got: String,
    },
    /// There is no kernel for this.
    #[error("{operation}: {reason}")]
    Unsupported {
        /// The launcher.
        operation: &'static str,
        /// What there is, and what was asked for.
        reason: String,
    },
}

/// `std::result::Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failed call of the driver.
    pub fn driver(call: impl ToString, reason: impl ToString) -> Self {
        Error::Driver { call: call.to_string(), reason: reason.to_string() }
    }

    /// A failed launch.
    pub fn launch(kernel: Kernel, reason: impl ToString) -> Self {
        Self::driver(kernel, reason)
    }
}

/// `Err` unless `ok`.
pub(crate) fn expect(
    ok: bool,
    operation: &'static str,
    operand: &'static str,
    expected: impl ToString,
    got: impl ToString,
) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Shape { operation, operand, expected: expected.to_string(), got: got.to_string() })
}
