//! `strftime_now`: the local time, as transformers takes it.

use jiff::Zoned;
use jiff::civil::DateTime;

use super::value::{Result, unsupported};

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

pub(super) fn strftime_now(format: &str) -> Result<String> {
    let mut out = String::new();
    strftime(format, &Zoned::now().datetime(), &mut out)?;
    Ok(out)
}

/// What Python gives on Linux in the C locale for a time that knows no zone, so that `%Z` and `%z` are empty.
fn strftime(format: &str, at: &DateTime, out: &mut String) -> Result<()> {
    let weekday = at.weekday().to_sunday_zero_offset() as i64;
    let (of_year, year) = (i64::from(at.day_of_year()), i64::from(at.year()));
    let (hour, week) = (i64::from(at.hour()), at.date().iso_week_date());
    let hour12 = (hour + 11) % 12 + 1;
    let month = MONTHS[usize::from(at.month().unsigned_abs()) - 1];
    let day = DAYS[weekday as usize];
    let mut directives = format.chars();
    while let Some(c) = directives.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = directives.next();
        let flag = directive.filter(|c| "-_0^#".contains(*c));
        if flag.is_some() {
            directive = directives.next();
        }
        let number = |value: i64, width: usize, fill: char| match (flag, fill) {
            (Some('-'), _) => format!("{value}"),
            (Some('_'), _) | (None | Some('^' | '#'), '_') => format!("{value:width$}"),
            _ => format!("{value:0width$}"),
        };
        let name = |name: &str| match flag {
            Some('^' | '#') => name.to_uppercase(),
            _ => name.to_string(),
        };
        let composed = |format: &str| {
            let mut text = String::new();
            strftime(format, at, &mut text)?;
            Ok(if flag == Some('^') { text.to_uppercase() } else { text })
        };
        out.push_str(&match directive {
            Some('Y') if flag == Some('_') => format!("{year:4}"),
            Some('Y') => format!("{year}"),
            Some('C') => number(year / 100, 2, '0'),
            Some('y') => number(year % 100, 2, '0'),
            Some('m') => number(at.month().into(), 2, '0'),
            Some('B') => name(month),
            Some('b' | 'h') => name(&month[..3]),
            Some('d') => number(at.day().into(), 2, '0'),
            Some('e') => number(at.day().into(), 2, '_'),
            Some('j') => number(of_year, 3, '0'),
            Some('A') => name(day),
            Some('a') => name(&day[..3]),
            Some('w') => number(weekday, 1, '0'),
            Some('u') => number((weekday + 6) % 7 + 1, 1, '0'),
            Some('U') => number((of_year + 6 - weekday) / 7, 2, '0'),
            Some('W') => number((of_year + 6 - (weekday + 6) % 7) / 7, 2, '0'),
            Some('V') => number(week.week().into(), 2, '0'),
            Some('G') => number(week.year().into(), 4, '0'),
            Some('g') => number(i64::from(week.year()) % 100, 2, '0'),
            Some('H') => number(hour, 2, '0'),
            Some('I') => number(hour12, 2, '0'),
            Some('k') => number(hour, 2, '_'),
            Some('l') => number(hour12, 2, '_'),
            Some('p') if flag == Some('#') => if hour < 12 { "am" } else { "pm" }.into(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('P') => if hour < 12 { "am" } else { "pm" }.into(),
            Some('M') => number(at.minute().into(), 2, '0'),
            Some('S') => number(at.second().into(), 2, '0'),
            // Python's own, which takes no flag.
            Some('f') if flag.is_none() => format!("{:06}", at.subsec_nanosecond() / 1000),
            Some('Z' | 'z') if flag.is_none() => String::new(),
            Some('D' | 'x') => composed("%m/%d/%y")?,
            Some('F') => composed("%Y-%m-%d")?,
            Some('T' | 'X') => composed("%H:%M:%S")?,
            Some('R') => composed("%H:%M")?,
            Some('r') => composed("%I:%M:%S %p")?,
            Some('c') => composed("%a %b %e %H:%M:%S %Y")?,
            Some('n') => "\n".into(),
            Some('t') => "\t".into(),
            Some('%') => "%".into(),
            other => {
                let flag = flag.map(String::from).unwrap_or_default();
                let other = other.map(String::from).unwrap_or_default();
                return unsupported(format_args!("%{flag}{other} in strftime_now"));
            }
        });
    }
    Ok(())
}
