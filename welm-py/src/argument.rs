//! Converts one argument of a call to the type that it should have. All arguments of this package go through here.
//!
//! A wrong type is a `TypeError` that names the argument, the expected type and the given one. A wrong value is
//! `welm.InvalidOption` with the allowed values and the given one. Conversions of PyO3 and CPython do not know these,
//! so their messages are never shown. An object may claim any length, so no memory is allocated by that number:
//! elements are taken one after another, and no more of them than make sense.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use pyo3::exceptions::{PyMemoryError, PyOverflowError, PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyFloat, PyInt, PyMapping, PyString};

use crate::error::{OrRaise, invalid_option};
use crate::exit::detached;

/// After this many elements, which take some milliseconds, other threads may run and signal handlers are called.
const LOOK: usize = 1 << 16;

/// Most characters of a value that a message shows.
const SHOWN: usize = 60;

/// The name and value of one argument.
#[derive(Clone, Copy)]
pub(crate) struct Argument<'a, 'py> {
    pub(crate) name: &'static str,
    pub(crate) value: &'a Bound<'py, PyAny>,
}

/// Elements of a sequence.
pub(crate) enum Elements<T> {
    /// All of them.
    All(Vec<T>),
    /// More than were asked for: at least this many. If the sequence claims to have more, that number.
    TooMany(usize),
}

impl<'a, 'py> Argument<'a, 'py> {
    pub(crate) fn new(name: &'static str, value: &'a Bound<'py, PyAny>) -> Self {
        Argument { name, value }
    }

    /// The value is not of the type that is expected.
    pub(crate) fn not(self, expected: &str) -> PyErr {
        PyTypeError::new_err(format!(
            "argument '{}': expected {expected}, got {}",
            self.name,
            kind(self.value)
        ))
    }

    /// The value is outside its domain.
    fn outside(self, expected: &str) -> PyErr {
        let reason = format!("expected {expected}, got {}", shown(self.value));
        invalid_option(self.value.py(), self.name, reason)
    }

    /// Converts with PyO3, and replaces its errors by ours. Exceptions that an object's own methods raise are passed
    /// on.
    fn convert<T: FromPyObject<'a, 'py>>(self, expected: &str, outside: &str) -> PyResult<T> {
        let py = self.value.py();
        self.value.extract::<T>().map_err(|error| match error.into() {
            error if error.is_instance_of::<PyTypeError>(py) => self.not(expected),
            error if error.is_instance_of::<PyOverflowError>(py) => self.outside(outside),
            error if error.is_instance_of::<PyUnicodeEncodeError>(py) => {
                self.outside("text without halves of surrogate pairs")
            }
            error => error,
        })
    }

    /// A number of things. A bool is refused: `logprobs=True` would mean 1.
    pub(crate) fn count<T>(self) -> PyResult<T>
    where
        T: FromPyObject<'a, 'py> + Bounded,
    {
        if self.value.is_instance_of::<PyBool>() {
            return Err(self.not("int"));
        }
        let is_negative = || self.value.lt(0).unwrap_or(false);
        let outside = if is_negative() { "0 or more".to_string() } else { format!("at most {}", T::MAX) };
        self.convert("int", &outside)
    }

    /// `None`, or a number of things.
    pub(crate) fn optional_count<T>(self) -> PyResult<Option<T>>
    where
        T: FromPyObject<'a, 'py> + Bounded,
    {
        if self.value.is_none() { Ok(None) } else { self.count().map(Some) }
    }

    /// Yes or no.
    pub(crate) fn truth(self) -> PyResult<bool> {
        self.convert("bool", "bool")
    }

    /// `None`, or yes or no.
    pub(crate) fn optional_truth(self) -> PyResult<Option<bool>> {
        if self.value.is_none() { Ok(None) } else { self.truth().map(Some) }
    }

    /// A real number, which may be infinite or NaN. The caller checks its range.
    pub(crate) fn real(self) -> PyResult<f64> {
        if self.value.is_instance_of::<PyBool>() {
            return Err(self.not("float"));
        }
        self.convert("float", "-1.7e308 to 1.7e308")
    }

    /// A real number as f32, which the engine uses.
    pub(crate) fn number(self) -> PyResult<f32> {
        let number = self.real()?;
        if number.is_finite() && (number as f32).is_infinite() {
            return Err(self.outside("-3.4e38 to 3.4e38"));
        }
        Ok(number as f32)
    }

    /// A value that the core parses from its name.
    pub(crate) fn named_value<T: FromStr<Err = welm_core::Error>>(self) -> PyResult<T> {
        self.text()?.parse().or_raise(self.value.py())
    }

    /// A mapping of token ids to numbers, as pairs.
    pub(crate) fn by_token(self) -> PyResult<Vec<(u32, f32)>> {
        if self.value.cast::<PyMapping>().is_err() || !self.value.hasattr("items")? {
            return Err(self.not("a mapping of token ids to numbers"));
        }
        let items = self.value.call_method0("items")?;
        // No limit is needed: a mapping is already in memory.
        let expected = "a mapping of token ids to numbers";
        let pairs = self.elements(&items, expected, usize::MAX, |item| {
            let pair: PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> = item.extract();
            let (token, number) = pair.map_err(|_| self.not_of(expected, item))?;
            Ok((Argument::new(self.name, &token).count()?, Argument::new(self.name, &number).number()?))
        })?;
        self.all(pairs, usize::MAX, "tokens")
    }

    /// `None`, or seconds, or a `timedelta`. Very long times become the longest `Duration`.
    pub(crate) fn duration(self) -> PyResult<Option<Duration>> {
        const EXPECTED: &str = "seconds or a timedelta";
        if self.value.is_none() {
            return Ok(None);
        }
        if self.value.is_instance_of::<PyBool>() {
            return Err(self.not(EXPECTED));
        }
        let py = self.value.py();
        if self.value.hasattr("total_seconds")? {
            let seconds = self.value.call_method0("total_seconds")?;
            if !seconds.is_instance_of::<PyFloat>() {
                return Err(self.not(EXPECTED));
            }
            return Argument::new(self.name, &seconds).duration();
        }
        let seconds = match self.value.extract::<f64>() {
            Ok(seconds) => seconds,
            Err(error) if error.is_instance_of::<PyOverflowError>(py) && self.value.gt(0)? => f64::INFINITY,
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => f64::NEG_INFINITY,
            Err(error) if error.is_instance_of::<PyTypeError>(py) => return Err(self.not(EXPECTED)),
            Err(error) => return Err(error),
        };
        if seconds >= u64::MAX as f64 {
            return Ok(Some(Duration::MAX));
        }
        Duration::try_from_secs_f64(seconds).map(Some).map_err(|_| self.outside("0 seconds or more"))
    }

    /// A text.
    pub(crate) fn text(self) -> PyResult<PyBackedStr> {
        self.convert("str", "str")
    }

    pub(crate) fn is_text(self) -> bool {
        self.value.is_instance_of::<PyString>()
    }

    /// The path of a file or folder.
    pub(crate) fn path(self) -> PyResult<PathBuf> {
        const EXPECTED: &str = "str or os.PathLike";
        self.convert(EXPECTED, EXPECTED)
    }

    /// Something that can be called.
    pub(crate) fn callable(self) -> PyResult<Py<PyAny>> {
        if self.value.is_callable() { Ok(self.value.clone().unbind()) } else { Err(self.not("a callable")) }
    }

    /// Texts, from a sequence that is not a text itself.
    pub(crate) fn texts(self, expected: &str, most: usize) -> PyResult<Vec<String>> {
        let texts = self.sequence(expected, most, |element| {
            if !element.is_instance_of::<PyString>() {
                return Err(self.not_of(expected, element));
            }
            Ok(Argument::new(self.name, element).text()?.to_string())
        })?;
        self.all(texts, most, "strings")
    }

    /// Token ids, from a sequence: at most `most` of them.
    pub(crate) fn tokens(self, expected: &str, most: usize) -> PyResult<Elements<u32>> {
        self.sequence(expected, most, |element| {
            let number =
                if element.is_instance_of::<PyBool>() { None } else { Some(element.extract::<u32>()) };
            number.ok_or_else(|| self.not_of(expected, element))?.map_err(|error| {
                let py = element.py();
                if error.is_instance_of::<PyOverflowError>(py) {
                    let expected = format!("tokens of 0 to {}", u32::MAX);
                    Argument::new(self.name, element).outside(&expected)
                } else if error.is_instance_of::<PyTypeError>(py) {
                    self.not_of(expected, element)
                } else {
                    error
                }
            })
        })
    }

    /// The elements of a sequence that is neither text nor bytes.
    pub(crate) fn sequence<T>(
        self,
        expected: &str,
        most: usize,
        element: impl FnMut(&Bound<'py, PyAny>) -> PyResult<T>,
    ) -> PyResult<Elements<T>> {
        let value = self.value;
        let is_one = value.hasattr("__getitem__")?
            && !self.is_text()
            && !value.is_instance_of::<PyBytes>()
            && !value.is_instance_of::<PyByteArray>()
            && value.cast::<PyMapping>().is_err();
        if is_one { self.elements(value, expected, most, element) } else { Err(self.not(expected)) }
    }

    /// An element is not of the type that is expected.
    pub(crate) fn not_of(self, expected: &str, element: &Bound<'py, PyAny>) -> PyErr {
        PyTypeError::new_err(format!(
            "argument '{}': expected {expected}, got {} in it",
            self.name,
            kind(element)
        ))
    }

    /// The elements of an iterable, up to `most` of them.
    fn elements<T>(
        self,
        value: &Bound<'py, PyAny>,
        expected: &str,
        most: usize,
        mut element: impl FnMut(&Bound<'py, PyAny>) -> PyResult<T>,
    ) -> PyResult<Elements<T>> {
        let py = value.py();
        let mut taken = Vec::new();
        let items = value.try_iter().map_err(|error| {
            // For instance an array without dimensions, or a class, whose objects but not itself can be iterated.
            if error.is_instance_of::<PyTypeError>(py) { self.not(expected) } else { error }
        })?;
        for item in items {
            let item = item?;
            if taken.len() == most {
                return Ok(Elements::TooMany(value.len().unwrap_or(0).max(most.saturating_add(1))));
            }
            taken.try_reserve(1).map_err(|_| {
                let (name, count) = (self.name, taken.len());
                PyMemoryError::new_err(format!("argument '{name}': no memory for more than {count} elements"))
            })?;
            taken.push(element(&item)?);
            if taken.len().is_multiple_of(LOOK) {
                detached(py, || ());
                py.check_signals()?;
            }
        }
        Ok(Elements::All(taken))
    }

    /// All elements; more than `most` are an error.
    pub(crate) fn all<T>(self, elements: Elements<T>, most: usize, what: &str) -> PyResult<Vec<T>> {
        match elements {
            Elements::All(elements) => Ok(elements),
            Elements::TooMany(count) => {
                let reason = format!("expected at most {most} {what}, got {count}");
                Err(invalid_option(self.value.py(), self.name, reason))
            }
        }
    }
}

/// The name of a value's type; `None` as it is.
pub(crate) fn kind(value: &Bound<'_, PyAny>) -> String {
    if value.is_none() {
        return "None".into();
    }
    value.get_type().name().map_or_else(|_| "an object".into(), |name| name.to_string())
}

/// A value in a message, as Python writes it.
fn shown(value: &Bound<'_, PyAny>) -> String {
    // Python refuses to print an int of thousands of digits, and shorter long ones are not readable either.
    const WRITTEN_BITS: usize = 128;
    if value.is_instance_of::<PyInt>() {
        let bits = value.call_method0("bit_length").and_then(|bits| bits.extract::<usize>());
        if let Ok(bits @ WRITTEN_BITS..) = bits {
            let sign = if value.lt(0).unwrap_or(false) { "a negative" } else { "an" };
            return format!("{sign} int of {bits} bits");
        }
    }
    let text = match value.repr() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => return format!("a value of type {}", kind(value)),
    };
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Integer types with their largest value.
pub(crate) trait Bounded {
    const MAX: u64;
}

impl Bounded for usize {
    const MAX: u64 = usize::MAX as u64;
}

impl Bounded for u32 {
    const MAX: u64 = u32::MAX as u64;
}

impl Bounded for u64 {
    const MAX: u64 = u64::MAX;
}
