//! What a metadata key can hold.

use std::fmt;
use std::ops::Range;

/// A metadata value. Integers are widened to 64 bits and floats to f64, without loss.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// u8, u16, u32 or u64.
    Unsigned(u64),
    /// i8, i16, i32 or i64.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A byte, 0 or 1.
    Bool(bool),
    /// Text, which lies in these bytes of the file: UTF-8, or it is an error of who asks for it.
    Str(Range<usize>),
    /// Elements of one type.
    Array(Array),
}

/// An array value, as it lies in the file: vocabularies have hundreds of thousands of entries.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    pub(super) type_id: u32,
    pub(super) len: usize,
    /// Bytes of the file with the elements, which have been checked.
    pub(super) elements: Range<usize>,
}

/// Types of values by their number in a file.
const KINDS: [&str; 13] = [
    "unsigned integers",
    "signed integers",
    "unsigned integers",
    "signed integers",
    "unsigned integers",
    "signed integers",
    "floats",
    "booleans",
    "strings",
    "arrays",
    "unsigned integers",
    "signed integers",
    "floats",
];

/// What a value is, for the `got` of an error: its kind, and for numbers the value.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(x) => write!(f, "{x}"),
            Value::Signed(x) => write!(f, "{x}"),
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Bool(x) => write!(f, "{x}"),
            Value::Str(_) => f.write_str("a string"),
            Value::Array(a) => write!(f, "an array of {} {}", a.len, KINDS[a.type_id as usize]),
        }
    }
}
