//! The function `strftime_now`, which formats the local time as in transformers.

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

/// Formats as Python does on Linux, in the C locale, for a time without a time zone. So `%Z` and `%z` are empty.
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
            // Python adds this one to those of C; it takes no flag.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected texts are those of Python's `datetime.strftime`.
    #[test]
    fn dates_are_those_of_python() {
        let all = "%A %a %d %e %-d %B %b %h %m %-m %Y %y %C %j %-j %H:%M:%S %I %-I %l %k %p %P %w %u %U %W %V %G %g|%D %F %T %R %r %c %x %X|%f|%Z%z|%^a %#p %_d %0e%n%t100%%";
        for ((year, month, day, hour, minute, second, nanosecond), want) in [
            (
                (2000, 2, 29, 11, 59, 59, 1_234_000),
                "Tuesday Tue 29 29 29 February Feb Feb 02 2 2000 00 20 060 60 11:59:59 11 11 11 11 AM am 2 2 09 09 09 2000 00|02/29/00 2000-02-29 11:59:59 11:59 11:59:59 AM Tue Feb 29 11:59:59 2000 02/29/00 11:59:59|001234||TUE am 29 29\n\t100%",
            ),
            (
                (2024, 12, 31, 23, 5, 9, 0),
                "Tuesday Tue 31 31 31 December Dec Dec 12 12 2024 24 20 366 366 23:05:09 11 11 11 23 PM pm 2 2 52 53 01 2025 25|12/31/24 2024-12-31 23:05:09 23:05 11:05:09 PM Tue Dec 31 23:05:09 2024 12/31/24 23:05:09|000000||TUE pm 31 31\n\t100%",
            ),
            (
                (2027, 1, 1, 0, 0, 0, 0),
                "Friday Fri 01  1 1 January Jan Jan 01 1 2027 27 20 001 1 00:00:00 12 12 12  0 AM am 5 5 00 00 53 2026 26|01/01/27 2027-01-01 00:00:00 00:00 12:00:00 AM Fri Jan  1 00:00:00 2027 01/01/27 00:00:00|000000||FRI am  1 01\n\t100%",
            ),
            (
                (2026, 11, 8, 12, 30, 0, 0),
                "Sunday Sun 08  8 8 November Nov Nov 11 11 2026 26 20 312 312 12:30:00 12 12 12 12 PM pm 0 7 45 44 45 2026 26|11/08/26 2026-11-08 12:30:00 12:30 12:30:00 PM Sun Nov  8 12:30:00 2026 11/08/26 12:30:00|000000||SUN pm  8 08\n\t100%",
            ),
        ] {
            let mut got = String::new();
            let at = DateTime::new(year, month, day, hour, minute, second, nanosecond).unwrap();
            strftime(all, &at, &mut got).unwrap();
            assert_eq!(got, want);
        }
        for wrong in ["%Q", "%", "%-", "%s", "%-f", "%E"] {
            assert!(strftime_now(wrong).unwrap_err().message.contains("in strftime_now"), "{wrong}");
        }
    }
}
