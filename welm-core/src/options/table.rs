//! The form in which structs of options are written, and the table that is made of each. It knows no option; types of
//! their own say what the table asks of them ([`Value`]) where they are defined.
//!
//! `options!` takes a struct as one would write it, with two or three things after each field: its default, its
//! [`Domain`] and, where the default is not to set it, what holds then, in words:
//!
//! ```text
//! /// Compute threads.
//! pub threads: Option<usize> = None, Whole(1, 1_024), "as many as CPU affinity and cgroup quota allow";
//! ```
//!
//! It writes the struct with these fields and docs, `Default`, the public `table()`, and `validate()`, which compares
//! every value with its domain. The first line of a field's docs is the line that README, Python, C, C++ and the command line
//! show (`tests/options.rs` writes it there): it is one sentence of plain text. What only Rust needs follows below it.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};

/// The values that an option may have.
///
/// `Display` writes it in words, such as `1 to 128`. It writes nothing if every value of the type is allowed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Domain {
    /// Yes or no.
    Switch,
    /// A whole number from the first to the second; `u64::MAX` is no limit.
    Whole(u64, u64),
    /// A number from the first to the second.
    Real(f32, f32),
    /// One of these names.
    Named {
        /// The names that messages and documentation list.
        names: Vec<&'static str>,
        /// Other spellings of some of them.
        aliases: Vec<&'static str>,
    },
    /// The name of a [`Device`](super::Device).
    Device,
    /// Text; at most so many bytes if it is restricted, and then at least one.
    Text(Option<usize>),
    /// At most so many texts. Each has at least 1 byte, and at most as many bytes as there may be texts.
    Texts(usize),
    /// At most so many ids of tokens.
    Tokens(usize),
    /// A number for each of some tokens, from minus to plus this, or minus infinity.
    Biases(f32),
    /// A size in bytes.
    Bytes,
    /// A length of time.
    Duration,
    /// A [`CancelToken`](super::CancelToken).
    Cancel,
    /// A function.
    Callback,
}

/// Names as a sentence lists them: `auto, f32 or bf16`.
fn list(names: &[&str]) -> String {
    match names {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Domain::Whole(0, u64::MAX) | Domain::Switch | Domain::Text(None) => Ok(()),
            Domain::Bytes | Domain::Duration | Domain::Cancel | Domain::Callback => Ok(()),
            Domain::Whole(least, u64::MAX) => write!(f, "at least {least}"),
            Domain::Whole(0, most) => write!(f, "at most {most}"),
            Domain::Whole(least, most) => write!(f, "{least} to {most}"),
            Domain::Real(least, most) => write!(f, "{least} to {most}"),
            Domain::Named { names, .. } => f.write_str(&list(names)),
            Domain::Device => f.write_str("auto, cpu, cuda or cuda:N"),
            Domain::Text(Some(most)) => write!(f, "1 to {most} bytes"),
            Domain::Texts(most) => write!(f, "at most {most}, each of 1 to {most} bytes"),
            Domain::Tokens(most) => write!(f, "at most {most}"),
            Domain::Biases(most) => write!(f, "-{most} to {most}, or -infinity"),
        }
    }
}

/// One row of the table of a struct of options: what a program needs that offers the option to others, such as a
/// command line or a settings file.
///
/// ```
/// use welm_core::{Domain, GenerateOptions};
/// let table = GenerateOptions::table();
/// let n = table.iter().find(|option| option.name == "n").unwrap();
/// assert_eq!((&n.domain, n.default.as_deref()), (&Domain::Whole(1, 128), Some("1")));
/// assert_eq!(n.to_string(), "Sequences returned; the prompt is computed once (1 to 128; default: 1).");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct OptionInfo {
    /// Its name, which is that of the field.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// Its type, and the values that are allowed.
    pub domain: Domain,
    /// Its default as text, `0.85` or `bf16`; `None` if it is not set by default.
    pub default: Option<String>,
    /// What holds while it is not set, in words.
    pub unset: &'static str,
}

impl OptionInfo {
    /// The default, or what holds without one.
    pub fn default_text(&self) -> &str {
        self.default.as_deref().unwrap_or(self.unset)
    }
}

impl fmt::Display for OptionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (doc, domain) = (self.doc.trim_end_matches('.'), self.domain.to_string());
        let separator = if domain.is_empty() { "" } else { "; " };
        write!(f, "{doc} ({domain}{separator}default: {}).", self.default_text())
    }
}

/// What the table asks of a field's type.
pub(super) trait Value {
    /// The value as text; `None` if it is not set.
    fn text(&self) -> Option<String> {
        None
    }

    /// Refuses a value outside the domain. Types whose every value is allowed have nothing to check.
    fn check(&self, _option: &'static str, _domain: &Domain) -> Result<()> {
        Ok(())
    }
}

impl Value for Duration {}

/// The value is not in the domain, which is told in its own words.
fn outside(option: &'static str, domain: &Domain, got: impl fmt::Display) -> Error {
    Error::option(option, format!("expected {domain}, got {got}"))
}

impl<T: Value> Value for Option<T> {
    fn text(&self) -> Option<String> {
        self.as_ref().and_then(T::text)
    }

    fn check(&self, option: &'static str, domain: &Domain) -> Result<()> {
        self.as_ref().map_or(Ok(()), |value| value.check(option, domain))
    }
}

impl Value for bool {
    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// Whole numbers.
macro_rules! whole {
    ($($type:ty),*) => {
        $(impl Value for $type {
            fn text(&self) -> Option<String> {
                Some(self.to_string())
            }

            fn check(&self, option: &'static str, domain: &Domain) -> Result<()> {
                match domain {
                    Domain::Whole(least, most) if !(*least..=*most).contains(&(*self as u64)) => {
                        Err(outside(option, domain, self))
                    }
                    _ => Ok(()),
                }
            }
        })*
    };
}
whole!(usize, u64);

impl Value for f32 {
    fn text(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }

    fn check(&self, option: &'static str, domain: &Domain) -> Result<()> {
        match domain {
            Domain::Real(least, most) if !(least..=most).contains(&self) => {
                Err(outside(option, domain, self))
            }
            _ => Ok(()),
        }
    }
}

impl Value for String {
    fn text(&self) -> Option<String> {
        Some(self.clone())
    }

    fn check(&self, option: &'static str, domain: &Domain) -> Result<()> {
        match domain {
            Domain::Text(Some(most)) if self.is_empty() || self.len() > *most => {
                Err(outside(option, domain, self.len()))
            }
            _ => Ok(()),
        }
    }
}

impl Value for Vec<String> {
    fn check(&self, option: &'static str, domain: &Domain) -> Result<()> {
        let Domain::Texts(most) = domain else { return Ok(()) };
        if self.len() > *most {
            let reason = format!("expected at most {most} strings, got {}", self.len());
            return Err(Error::option(option, reason));
        }
        match self.iter().find(|text| text.is_empty() || text.len() > *most) {
            Some(text) => {
                let reason = format!("expected strings of 1 to {most} bytes, got one of {}", text.len());
                Err(Error::option(option, reason))
            }
            None => Ok(()),
        }
    }
}

impl Value for Vec<u32> {
    fn check(&self, option: &'static str, domain: &Domain) -> Result<()> {
        match domain {
            Domain::Tokens(most) if self.len() > *most => {
                Err(Error::option(option, format!("expected at most {most} tokens, got {}", self.len())))
            }
            _ => Ok(()),
        }
    }
}

impl Value for Vec<(u32, f32)> {
    fn check(&self, option: &'static str, domain: &Domain) -> Result<()> {
        let Domain::Biases(most) = domain else { return Ok(()) };
        let allowed = |bias: f32| bias == f32::NEG_INFINITY || (-most..=*most).contains(&bias);
        match self.iter().find(|&&(_, bias)| !allowed(bias)) {
            Some((token, bias)) => {
                let reason = format!("expected -{most} to {most}, or -inf, for token {token}, got {bias}");
                Err(Error::option(option, reason))
            }
            None => Ok(()),
        }
    }
}

/// Makes a struct of options and its table; see the head of this module.
macro_rules! options {
    (
        $(#[$about:meta])*
        pub struct $Options:ident {
            $(
                #[doc = $doc:literal]
                $(#[doc = $more:literal])*
                pub $name:ident: $type:ty = $default:expr, $domain:expr $(, $unset:literal)?;
            )*
        }
    ) => {
        $(#[$about])*
        pub struct $Options {
            $(
                #[doc = $doc]
                $(#[doc = $more])*
                pub $name: $type,
            )*
        }

        impl Default for $Options {
            fn default() -> Self {
                $Options { $($name: $default,)* }
            }
        }

        impl $Options {
            /// Name, type, domain, default and one sentence of text for each of these options.
            pub fn table() -> Vec<$crate::options::table::OptionInfo> {
                use $crate::options::table::{Domain::{self, *}, OptionInfo};
                let about: Vec<(&str, Domain, &str)> = vec![$(($doc, $domain, concat!($($unset)?)),)*];
                let row = |((name, default), (doc, domain, unset)): ((&'static str, _), (&'static str, _, _))| {
                    OptionInfo { name, doc: doc.trim(), domain, default, unset }
                };
                Self::default().texts().into_iter().zip(about).map(row).collect()
            }

            /// Each option with its value as text; `None` for one that is not set.
            fn texts(&self) -> Vec<(&'static str, Option<String>)> {
                use $crate::options::table::Value;
                vec![$((stringify!($name), Value::text(&self.$name)),)*]
            }

            /// Refuses the first value that is outside its domain.
            pub(crate) fn validate(&self) -> $crate::error::Result<()> {
                use $crate::options::table::{Domain::*, Value};
                $(Value::check(&self.$name, stringify!($name), &$domain)?;)*
                Ok(())
            }
        }
    };
}
pub(super) use options;

#[cfg(test)]
mod tests {
    use crate::options::{GenerateOptions, LoadOptions, OptionInfo, ScoreOptions};

    /// What other places show is one sentence, and says what holds by default.
    #[test]
    fn every_option_is_told_in_one_sentence() {
        let all = [LoadOptions::table(), GenerateOptions::table(), ScoreOptions::table()].concat();
        assert!(all.len() > 35);
        for OptionInfo { name, doc, default, unset, .. } in &all {
            assert!(doc.ends_with('.') && !doc.trim_end_matches('.').contains(". "), "{name}: {doc}");
            assert!(!doc.contains(['`', '[', '|', '"']), "{name} is plain text in every language: {doc}");
            assert_eq!(default.is_some(), unset.is_empty(), "{name}: a default, or what holds without");
        }
    }
}
