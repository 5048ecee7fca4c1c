use super::*;

fn splits(regex: &Regex, text: &str) -> Vec<String> {
    let matches = regex.find_all(text, &mut Watch::none()).unwrap();
    let parts = with_gaps(&matches, text.len());
    parts
        .iter()
        .filter(|((start, end), _)| start < end)
        .map(|((start, end), _)| text[*start..*end].into())
        .collect()
}

/// `[pattern, text, words]`: how tokenizers 0.23 with Oniguruma splits the text. No text if it refuses the pattern.
type Case = (String, Option<String>, Option<Vec<String>>);

/// The cases that differ, how many are the same, and how often each construct was refused.
fn compare(cases: &str) -> (Vec<String>, usize, HashMap<String, usize>) {
    let cases: Vec<Case> = serde_json::from_str(cases).unwrap();
    let (mut wrong, mut same, mut refused) = (Vec::new(), 0, HashMap::new());
    for (pattern, text, want) in cases {
        let regex = match Regex::build(&pattern, &mut { MAX_BUILD }) {
            Ok(regex) => regex,
            Err(reason) => {
                *refused.entry(reason).or_default() += 1;
                continue;
            }
        };
        match (text, want) {
            (Some(text), Some(want)) if splits(&regex, &text) != want => {
                wrong.push(format!("{pattern:?} {text:?}: {:?}, want {want:?}", splits(&regex, &text)));
            }
            (None, _) => wrong.push(format!("{pattern:?} is an error there")),
            _ => same += 1,
        }
    }
    (wrong, same, refused)
}

#[test]
fn words_are_those_of_oniguruma() {
    let (wrong, same, refused) = compare(include_str!("cases.json"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let n: usize = refused.values().sum();
    assert!(same > 1_300 && n < same, "{same} are the same, {n} refused: {refused:?}");
}

/// The same as the test before, with a file of any size that `tests/reference/regex_cases.py` makes.
#[test]
#[ignore = "needs WELM_REGEX_CASES"]
fn more_words_are_those_of_oniguruma() {
    let path = std::env::var("WELM_REGEX_CASES").unwrap();
    let (wrong, same, refused) = compare(&std::fs::read_to_string(path).unwrap());
    let mut refused: Vec<_> = refused.into_iter().collect();
    refused.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    println!("{same} the same, {} wrong; refused:", wrong.len());
    refused.iter().for_each(|(reason, n)| println!("{n:6} {reason}"));
    assert!(wrong.is_empty(), "{}", wrong[..wrong.len().min(60)].join("\n"));
}

/// Classes, each with the number of characters that Oniguruma finds in it, and a hash of these.
const CLASSES: &str = include_str!("classes.txt");

#[test]
fn classes_have_the_characters_of_oniguruma() {
    let mut compared = 0;
    for line in CLASSES.lines() {
        let mut columns = line.rsplitn(3, ' ');
        let hash: u64 = columns.next().unwrap().parse().unwrap();
        let count: usize = columns.next().unwrap().parse().unwrap();
        let pattern = columns.next().unwrap();
        let Ok(Node::Set(set)) = onig::parse(pattern) else { continue };
        let members: Vec<u32> =
            set.ranges().iter().flat_map(|r| r.start()..=r.end()).map(u32::from).collect();
        let fnv = members
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |h: u64, &c| (h ^ u64::from(c)).wrapping_mul(0x100_0000_01b3));
        assert_eq!((members.len(), fnv), (count, hash), "{pattern}");
        compared += 1;
    }
    assert!(compared > 120, "{compared}");
}

#[test]
fn constructs_that_may_mean_something_else_are_named() {
    for (pattern, name) in [
        (r"(?:(?=(a+)b)a)*b", "more than one character"),
        (r"(a)\1", "back reference"),
        (r"(?=ab)", "more than one character"),
        (r"(?>ab)c", "atomic"),
        (r"(?:ab)++", "possessive"),
        (r"\R", r"`\R`"),
        (r"\Gx", r"`\G`"),
        (r"a\Kb", r"`\K`"),
        (r"\p{Nope}", "Nope"),
        (r"(?x) a", "(?x)"),
        (r"(?~ab)", "group `(?~"),
        (r"(?(1)a|b)", "group `(?("),
        (r"(?i)ß", "beyond ASCII"),
        (r"(?i:ss)", "`ss`"),
        (r"(?i)[^a]", "inverted"),
        (r"[a-\d]", "range"),
        (r"[]a]", "[]"),
        (r"a{3}?", "{n}?"),
        (r"a{2000}", "1000"),
        (r"(", "without"),
        (r"a)", "without"),
        (r"\", "ends in the middle"),
        (r"\07", r"`\0`"),
        (r"(?:a?)*", "empty"),
        (r"(?:[ab]{1,900}){1,900}", "instructions"),
        (r"(?:a|b)*a(?:a|b){30}", "ways to match"),
    ] {
        let reason = Regex::new(pattern).unwrap_err().to_string();
        assert!(reason.contains(name), "{pattern}: {reason}");
    }
}

/// Classes such that each set of them has a character, and all other characters are in none of them.
#[test]
fn there_may_be_256_kinds_of_characters_and_no_more() {
    let pattern = |bits: u32| -> String {
        // The characters whose number has this bit form runs.
        let class = |bit: u32| -> String {
            let runs = (0..1u32 << bits).step_by(2 << bit).map(|n| 0x1000 + n + (1 << bit));
            runs.map(|n| format!("\\x{{{:X}}}-\\x{{{:X}}}", n, n + (1 << bit) - 1)).collect()
        };
        (0..bits).map(|bit| format!("[{}]", class(bit))).collect()
    };
    let regex = Regex::new(&pattern(8)).unwrap();
    assert_eq!(regex.n_kinds, 256);
    let all = "\u{10FF}".repeat(8);
    assert_eq!(splits(&regex, &format!("a{all}\u{10FE}{all}b")), ["a", &all, "\u{10FE}", &all, "b"]);
    let reason = Regex::new(&pattern(9)).unwrap_err().to_string();
    assert!(reason.contains("more than 256 kinds"), "{reason}");
}

#[test]
fn a_look_at_the_first_of_many_is_one_at_one() {
    let regex = Regex::new(r"(?:(?=(a+))a)*b").unwrap();
    assert_eq!(splits(&regex, "aabab"), ["aab", "ab"]);
    assert_eq!(splits(&regex, &"a".repeat(2_000)).len(), 1);
}

#[test]
fn work_is_linear_or_an_error_and_ends_when_it_is_told_to() {
    use crate::output::FinishReason;
    // The search from each position reads to the end and finds nothing.
    let regex = Regex::new("a+b").unwrap();
    let text = "a".repeat(30_000);
    let error = regex.find_all(&text, &mut Watch::none()).unwrap_err().to_string();
    assert!(error.contains("steps"), "{error}");
    assert_eq!(regex.find_all(&text[..2_000], &mut Watch::none()).unwrap(), []);
    let stop = || Some(FinishReason::Deadline);
    let halt = regex.find_all(&text, &mut Watch::new(&stop, usize::MAX)).unwrap_err();
    assert!(matches!(halt, Halt::Stopped(FinishReason::Deadline)));
}
