//! One argument of a call, as the type that it should have.
//!
//! What a caller may get wrong is a `TypeError` that names the argument, or `welm.InvalidOption` with its domain and
//! what came. Nothing is allocated by the length that an object claims to have: elements are taken one after another,
//! and no more of them than make sense.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use pyo3::exceptions::{PyMemoryError, PyOverflowError, PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyByteArray, PyBytes, PyMapping, PyString};

use crate::error::{OrRaise, invalid_option};
use crate::exit::detached;

/// Elements after which other threads may run, and signals are looked at: some milliseconds.
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
    /// More than were asked for: so many at least, and as many as it claims to have.
    TooMany(usize),
}

impl<'a, 'py> Argument<'a, 'py> {
    pub(crate) fn new(name: &'static str, value: &'a Bound<'py, PyAny>) -> Self {
        Argument { name, value }
    }

    /// The value as the type that the argument has.
    pub(crate) fn get<T: FromPyObject<'a, 'py>>(self) -> PyResult<T> {
        self.value.extract::<T>().map_err(|error| self.wrong(error.into()))
    }

    /// An error of the conversion, which does not know the argument.
    fn wrong(self, error: PyErr) -> PyErr {
        let py = self.value.py();
        if error.is_instance_of::<PyTypeError>(py) {
            PyTypeError::new_err(format!("argument '{}': {}", self.name, error.value(py)))
        } else if error.is_instance_of::<PyOverflowError>(py) {
            self.outside("a number that fits")
        } else if error.is_instance_of::<PyUnicodeEncodeError>(py) {
            invalid_option(py, self.name, format!("expected text that is Unicode: {}", error.value(py)))
        } else {
            error
        }
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

    /// A number of things.
    pub(crate) fn count<T>(self) -> PyResult<T>
    where
        T: FromPyObject<'a, 'py> + Bounded,
    {
        self.value.extract::<T>().map_err(|error| {
            let error = error.into();
            if error.is_instance_of::<PyOverflowError>(self.value.py()) {
                self.outside(&format!("0 to {}", T::MAX))
            } else {
                self.wrong(error)
            }
        })
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
        self.value.extract().map_err(|_| self.not("bool"))
    }

    /// A real number.
    pub(crate) fn real(self) -> PyResult<f64> {
        self.get()
    }

    /// A real number, as the engine holds it.
    pub(crate) fn number(self) -> PyResult<f32> {
        let number = self.real()?;
        if number.is_finite() && (number as f32).is_infinite() {
            return Err(self.outside("a number that fits"));
        }
        Ok(number as f32)
    }

    /// A value that the core knows by name.
    pub(crate) fn named_value<T: FromStr<Err = welm_core::Error>>(self) -> PyResult<T> {
        self.text()?.parse().or_raise(self.value.py())
    }

    /// Numbers of tokens, of a mapping.
    pub(crate) fn by_token(self) -> PyResult<Vec<(u32, f32)>> {
        if self.value.cast::<PyMapping>().is_err() || !self.value.hasattr("items")? {
            return Err(self.not("a mapping of token ids to numbers"));
        }
        let items = self.value.call_method0("items")?;
        // A mapping has no more keys than there are.
        let pairs = self.elements(&items, usize::MAX, |item| {
            let (token, number): (Bound<'py, PyAny>, Bound<'py, PyAny>) =
                item.extract().map_err(|error| self.wrong(error))?;
            Ok((Argument::new(self.name, &token).count()?, Argument::new(self.name, &number).number()?))
        })?;
        self.all(pairs, usize::MAX, "tokens")
    }

    /// Seconds, or a `timedelta`. Those that no clock reaches are as good as none.
    pub(crate) fn duration(self) -> PyResult<Duration> {
        let py = self.value.py();
        let seconds = match self.value.extract::<f64>() {
            Ok(seconds) => seconds,
            Err(_) if self.value.hasattr("total_seconds")? => {
                self.value.call_method0("total_seconds")?.extract().map_err(|error| self.wrong(error))?
            }
            Err(error) if error.is_instance_of::<PyOverflowError>(py) && self.value.gt(0)? => f64::INFINITY,
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => f64::NEG_INFINITY,
            Err(_) => return Err(self.not("seconds or a timedelta")),
        };
        if seconds >= u64::MAX as f64 {
            return Ok(Duration::MAX);
        }
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| invalid_option(py, self.name, format!("expected 0 seconds or more, got {seconds}")))
    }

    /// A text.
    pub(crate) fn text(self) -> PyResult<PyBackedStr> {
        if self.is_text() { self.get() } else { Err(self.not("str")) }
    }

    pub(crate) fn is_text(self) -> bool {
        self.value.is_instance_of::<PyString>()
    }

    /// The path of a file or folder.
    pub(crate) fn path(self) -> PyResult<PathBuf> {
        self.get()
    }

    /// Something that can be called.
    pub(crate) fn callable(self) -> PyResult<Py<PyAny>> {
        if self.value.is_callable() { Ok(self.value.clone().unbind()) } else { Err(self.not("a callable")) }
    }

    /// Texts, of a sequence that is no text itself.
    pub(crate) fn texts(self, expected: &str, most: usize) -> PyResult<Vec<String>> {
        let texts = self.sequence(expected, most, |element| {
            if !element.is_instance_of::<PyString>() {
                return Err(self.not_of(expected, element));
            }
            Ok(Argument::new(self.name, element).text()?.to_string())
        })?;
        self.all(texts, most, "strings")
    }

    /// Numbers of tokens, of a sequence: `most` of them.
    pub(crate) fn tokens(self, expected: &str, most: usize) -> PyResult<Elements<u32>> {
        self.sequence(expected, most, |element| {
            element.extract::<u32>().map_err(|error| {
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
        if is_one { self.elements(value, most, element) } else { Err(self.not(expected)) }
    }

    /// An element is not of the type that is expected.
    pub(crate) fn not_of(self, expected: &str, element: &Bound<'py, PyAny>) -> PyErr {
        PyTypeError::new_err(format!(
            "argument '{}': expected {expected}, got {} in it",
            self.name,
            kind(element)
        ))
    }

    /// What can be iterated, up to `most` elements.
    fn elements<T>(
        self,
        value: &Bound<'py, PyAny>,
        most: usize,
        mut element: impl FnMut(&Bound<'py, PyAny>) -> PyResult<T>,
    ) -> PyResult<Elements<T>> {
        let py = value.py();
        let mut taken = Vec::new();
        for item in value.try_iter().map_err(|error| self.wrong(error))? {
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

/// The name of a value's type.
fn kind(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "an object".into(), |name| name.to_string())
}

/// A value in a message.
fn shown(value: &Bound<'_, PyAny>) -> String {
    let text = match value.str() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => return format!("a value of type {}", kind(value)), // such as an int of thousands of digits
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
