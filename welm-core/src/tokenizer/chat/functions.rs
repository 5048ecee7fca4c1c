//! What transformers adds to Jinja2 for templates, and what Python's values bring along.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Most spaces that `tojson` indents by.
const MAX_INDENT: usize = 16;
/// Most digits of a number in a format; a width of ten makes gigabytes.
const MAX_FORMAT_DIGITS: usize = 3;

/// Adds functions, filters and methods.
pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_function("raise_exception", |message: String| Err::<Value, _>(invalid(message)));
    env.add_function("strftime_now", |format: &str| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        strftime(format, now)
    });
    env.add_filter("tojson", tojson);
    env.set_unknown_method_callback(|state, value, method, args| {
        if method == "format" && value.as_str().is_some_and(has_long_number) {
            let reason =
                format!("expected numbers of at most {MAX_FORMAT_DIGITS} digits in a format, got more");
            return Err(invalid(reason));
        }
        unknown_method_callback(state, value, method, args)
    });
}

fn invalid(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn has_long_number(format: &str) -> bool {
    format.as_bytes().windows(MAX_FORMAT_DIGITS + 1).any(|digits| digits.iter().all(u8::is_ascii_digit))
}

/// As Python's `json.dumps` with `ensure_ascii=False`: nothing is escaped for HTML, keys keep their order.
fn tojson(state: &State, value: Value, options: Kwargs) -> Result<Value, Error> {
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    if ascii == Some(true) || sorted == Some(true) {
        return Err(invalid("tojson: ensure_ascii and sort_keys are not supported"));
    }
    if value.kind() == ValueKind::Undefined {
        return Err(invalid("tojson: expected a value, got undefined"));
    }
    let (between, colon) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([between, colon]) => (between.as_str(), colon.as_str()),
        Some(other) => return Err(invalid(format!("tojson: expected 2 separators, got {}", other.len()))),
    };
    let spaces = match indent {
        Some(n) if n > MAX_INDENT => {
            return Err(invalid(format!("tojson: expected to indent by at most {MAX_INDENT}, got {n}")));
        }
        n => " ".repeat(n.unwrap_or(0)),
    };
    let pretty = indent.map(|_| PrettyFormatter::with_indent(spaces.as_bytes()));
    let mut json = Vec::new();
    let style = Python { between, colon, pretty };
    value.serialize(&mut Serializer::with_formatter(&mut json, style)).map_err(|e| invalid(e.to_string()))?;
    state.consume_fuel(json.len() as u64 / 16)?;
    String::from_utf8(json).map(Value::from).map_err(|e| invalid(e.to_string()))
}

/// Python's choice of spaces.
struct Python<'a> {
    between: &'a str,
    colon: &'a str,
    pretty: Option<PrettyFormatter<'a>>,
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_array(w),
            None => CompactFormatter.begin_array(w),
        }
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.end_array(w),
            None => CompactFormatter.end_array(w),
        }
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if !first {
            w.write_all(self.between.as_bytes())?;
        }
        // The first one's line break, without the comma of the others.
        self.pretty.as_mut().map_or(Ok(()), |pretty| pretty.begin_array_value(w, true))
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.pretty.as_mut().map_or(Ok(()), |pretty| pretty.end_array_value(w))
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_object(w),
            None => CompactFormatter.begin_object(w),
        }
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.end_object(w),
            None => CompactFormatter.end_object(w),
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(w, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(self.colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.pretty.as_mut().map_or(Ok(()), |pretty| pretty.end_object_value(w))
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From the first of January 1970 on.
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A time, in seconds of Unix, in UTC: the time zone would need a library, and templates ask for the date.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let of_year = day + 1;
    let mut month = 0;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let mut text = String::new();
    let mut directives = format.chars();
    while let Some(c) = directives.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text.push_str(&match directives.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{:02}", month + 1),
            Some('B') => MONTHS[month].into(),
            Some('b') => MONTHS[month][..3].into(),
            Some('d') => format!("{:02}", day + 1),
            Some('j') => format!("{of_year:03}"),
            Some('A') => DAYS[days as usize % 7].into(),
            Some('a') => DAYS[days as usize % 7][..3].into(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".into(),
            other => {
                let got = other.map_or("nothing".to_string(), |c| format!("%{c}"));
                return Err(invalid(format!("strftime_now: expected one of %YymBbdjAaHIpMS%, got {got}")));
            }
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let all = "%A %a %d %B %b %m %Y %y %j %H:%M:%S %I %p 100%%";
        let at = |seconds| strftime(all, seconds).unwrap();
        assert_eq!(at(0), "Thursday Thu 01 January Jan 01 1970 70 001 00:00:00 12 AM 100%");
        assert_eq!(at(951_825_599), "Tuesday Tue 29 February Feb 02 2000 00 060 11:59:59 11 AM 100%");
        assert_eq!(at(1_735_689_599), "Tuesday Tue 31 December Dec 12 2024 24 366 23:59:59 11 PM 100%");
        assert_eq!(at(4_107_542_400), "Monday Mon 01 March Mar 03 2100 00 060 00:00:00 12 AM 100%");
        assert!(strftime("%Q", 0).unwrap_err().to_string().contains("got %Q"));
        assert!(strftime("%", 0).unwrap_err().to_string().contains("got nothing"));
    }
}
