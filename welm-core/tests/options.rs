//! What other places say of options is what the tables of this crate say: the README, the Python signatures, their docs
//! and stubs, and the comments of the C and C++ structs.
//!
//! `WELM_UPDATE_OPTIONS=1 cargo test -p welm-core --test options` writes them again. The header of C is made of the C
//! structs afterwards, by `WELM_UPDATE_HEADER=1 cargo test -p welm-capi --test header`. The command line's flags and help
//! are made of the tables while it runs.

use std::fs;
use std::path::{Path, PathBuf};

use welm_core::{Domain, GenerateOptions, LoadOptions, OptionInfo, ScoreOptions};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares a file with what `rewrite` makes of it, or writes that.
#[track_caller]
fn check(path: &str, rewrite: impl Fn(&str) -> String) {
    let file = repository().join(path);
    let before = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{path}: {e}"));
    let after = rewrite(&before);
    if std::env::var_os("WELM_UPDATE_OPTIONS").is_some() && after != before {
        // In one step: the other tests read these files at the same time.
        let new = file.with_extension("new");
        fs::write(&new, &after).and_then(|()| fs::rename(&new, &file)).unwrap();
        return;
    }
    let same = before.lines().zip(after.lines()).take_while(|(a, b)| a == b).count();
    let (is, expected) = (before.lines().nth(same), after.lines().nth(same));
    assert!(
        before == after,
        "{path} says something else than the table of options, from line {} on:\n{is:?}, expected\n{expected:?}; write it \
         again with\n    WELM_UPDATE_OPTIONS=1 cargo test -p welm-core --test options",
        same + 1,
    );
}

/// A text in lines of at most 118 characters, each after `first` or, from the second on, `rest`.
fn wrapped(first: &str, rest: &str, text: &str) -> String {
    let mut lines = vec![first.to_string()];
    for (i, word) in text.split(' ').enumerate() {
        let line = lines.last_mut().expect("there is a first line");
        if i > 0 && line.chars().count() + 1 + word.chars().count() > 118 {
            lines.push(format!("{rest}{word}"));
        } else {
            *line += if i > 0 { " " } else { "" };
            *line += word;
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_readme_has_the_tables() {
    check("README.md", |text| {
        let text = with_table(text, "## Options of a request\n\n", GenerateOptions::table());
        with_table(&text, "## Options of loading\n\n", LoadOptions::table())
    });
}

/// The text with the table of these options after this heading, in place of the one that is there.
fn with_table(text: &str, heading: &str, options: Vec<OptionInfo>) -> String {
    let (before, after) = text.split_once(heading).expect("its heading is there");
    let (_, after) = after.split_once("\n\n").expect("a table ends with an empty line");
    let mut table = String::from("| option | default | values | meaning |\n|---|---|---|---|\n");
    for option in options {
        let doc = option.doc.trim_end_matches('.');
        let (default, values) = (option.default_text(), readme_values(&option.domain));
        table += &format!("| {} | {default} | {values} | {doc} |\n", option.name);
    }
    format!("{before}{heading}{table}\n{after}")
}

fn readme_values(domain: &Domain) -> String {
    match domain {
        Domain::Switch => "true, false".into(),
        Domain::Whole(0, u64::MAX) => "0 or more".into(),
        Domain::Texts(most) => format!("at most {most} strings, each of 1 to {most} bytes"),
        Domain::Tokens(most) => format!("at most {most} token ids"),
        Domain::Biases(_) => format!("for each token id, {domain}"),
        Domain::Duration => "a time".into(),
        Domain::Cancel => "a cancel token".into(),
        Domain::Bytes => "bytes".into(),
        Domain::Text(None) => "a name".into(),
        Domain::Callback => "a function".into(),
        other => other.to_string(),
    }
}

// Python.

/// The type of an argument; `tokens` is that of token ids.
fn python_type(option: &OptionInfo, tokens: &str) -> String {
    let quoted = |names: &[&str]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>();
    let kind = match &option.domain {
        Domain::Switch => "bool".into(),
        Domain::Whole(..) | Domain::Bytes => "SupportsIndex".into(),
        Domain::Real(..) => "float".into(),
        Domain::Named { names, aliases } => {
            format!("Literal[{}]", [quoted(names), quoted(aliases)].concat().join(", "))
        }
        Domain::Device | Domain::Text(_) => "str".into(),
        Domain::Texts(_) => "str | Sequence[str]".into(),
        Domain::Tokens(_) => tokens.into(),
        Domain::Biases(_) => "Mapping[int, float]".into(),
        Domain::Duration => "float | timedelta".into(),
        Domain::Cancel => "CancelToken".into(),
        Domain::Callback => "_Progress".into(),
        other => panic!("{}: no type of Python for {other:?}", option.name),
    };
    if option.default.is_some() { kind } else { format!("{kind} | None") }
}

/// The default in Python's words, with this quote around texts.
fn python_default(option: &OptionInfo, quote: &str) -> String {
    match (&option.domain, option.default.as_deref()) {
        (_, None) => "None".into(),
        (Domain::Switch, Some("true")) => "True".into(),
        (Domain::Switch, Some(_)) => "False".into(),
        (Domain::Named { .. } | Domain::Device | Domain::Text(_), Some(name)) => {
            format!("{quote}{name}{quote}")
        }
        (_, Some(number)) => number.into(),
    }
}

/// The options of a method, by its name in Python.
fn python_options(method: &str) -> Vec<OptionInfo> {
    match method {
        "__new__" | "new" => LoadOptions::table(),
        "estimate" => LoadOptions::table().into_iter().filter(|option| option.name != "progress").collect(),
        "generate" | "stream" | "generate_async" | "stream_async" => GenerateOptions::table(),
        "chat" | "chat_stream" | "chat_async" | "chat_stream_async" => GenerateOptions::table(),
        "score" | "score_async" => ScoreOptions::table(),
        _ => Vec::new(),
    }
}

/// Whether a line declares one of these, as `name: type`.
fn declares(options: &[OptionInfo], line: &str) -> bool {
    let name = line.trim_start().split(':').next();
    options.iter().any(|option| Some(option.name) == name)
}

#[test]
fn the_stubs_have_the_options() {
    check("welm-py/python/welm/_welm.pyi", |text| {
        let mut options = Vec::new();
        let mut after = String::new();
        for line in text.split_inclusive('\n') {
            if let Some(method) = line.trim_start().strip_prefix("def ") {
                let (name, rest) = method.split_once('(').expect("a function has parameters");
                let one_a_line = rest.trim_end().is_empty() || rest.starts_with("  # type: ignore");
                options = if one_a_line { python_options(name) } else { Vec::new() };
            }
            if line.starts_with("    ) ->") {
                for option in options.drain(..) {
                    let (kind, default) = (python_type(&option, "_Tokens"), python_default(&option, "\""));
                    after += &format!("        {}: {kind} = {default},\n", option.name);
                }
            }
            if !declares(&options, line) {
                after += line;
            }
        }
        after
    });
}

#[test]
fn the_typed_dictionaries_have_the_options() {
    check("welm-py/python/welm/_options.py", |text| {
        let mut after = text.to_string();
        for (class, method) in [("LoadOptions", "estimate"), ("GenerateOptions", "generate")] {
            let start = after.find(&format!("class {class}(")).expect("the class is there");
            let start = start + after[start..].find("\"\"\"\n\n").expect("it has a docstring") + 5;
            let end = after[start..].find("\n\n").map_or(after.len(), |end| start + end + 1);
            let fields: String = python_options(method)
                .iter()
                .map(|option| (option.name, python_type(option, "SupportsLenAndGetItem[SupportsIndex]")))
                .map(|(name, kind)| format!("    {name}: {kind}\n"))
                .collect();
            after.replace_range(start..end, &fields);
        }
        after
    });
}

/// What `help` says of an option's values: those of the domain, or what Python has for its type.
fn python_values(domain: &Domain) -> String {
    match domain {
        Domain::Texts(_) => format!("a string or several, {domain}"),
        Domain::Biases(_) => format!("a dict by token id, {domain}"),
        Domain::Duration => "seconds or a ``timedelta``".into(),
        Domain::Cancel => "a :class:`welm.CancelToken`".into(),
        Domain::Callback => "``False`` from it ends the loading with :class:`welm.Cancelled`".into(),
        other => other.to_string(),
    }
}

/// An entry of a docstring's list.
fn python_doc(indent: &str, option: &OptionInfo) -> String {
    let doc = option.doc.trim_end_matches('.');
    let doc = if doc.starts_with("KV") { doc.into() } else { doc[..1].to_lowercase() + &doc[1..] };
    let values = Some(python_values(&option.domain)).filter(|values| !values.is_empty());
    let default = match option.default {
        Some(_) => python_default(option, ""),
        None => option.unset.into(),
    };
    let brackets = values.into_iter().chain([format!("default: {default}")]).collect::<Vec<_>>().join("; ");
    let text = format!("{doc} ({brackets}).");
    wrapped(&format!("{indent}/// - ``{}``: ", option.name), &format!("{indent}///   "), &text)
}

/// A signature as an attribute has it, its options those of the table.
fn python_signature(signature: &str, options: &[OptionInfo]) -> String {
    let inside = signature.trim_start_matches('(').trim_end_matches(')');
    let own = inside.split(", ").map(str::to_string);
    let own = own.filter(|one| !options.iter().any(|o| one.starts_with(&format!("{}=", o.name))));
    let all = own.chain(options.iter().map(|o| format!("{}={}", o.name, python_default(o, "'"))));
    let all = format!("({})", all.collect::<Vec<_>>().join(", "));
    wrapped("        text_signature = \"", "            ", &all).trim().replace('\n', " \\\n")
}

#[test]
fn the_signatures_and_docs_of_python_have_the_options() {
    check("welm-py/src/model.rs", |text| {
        let mut after = String::new();
        let mut rest = text;
        const START: &str = "text_signature = \"";
        while let Some((before, from)) = rest.split_once(START) {
            let (written, next) = from.split_once('"').expect("a text ends");
            let signature = written.split("\\\n").map(str::trim_start).collect::<String>();
            let (_, method) = next.split_once("fn ").expect("an attribute stands before its method");
            let method = &method[..method.find(['(', '<']).expect("a method has parameters")];
            after += before;
            after += &match python_options(method) {
                none if none.is_empty() => format!("{START}{written}"),
                options => python_signature(&signature, &options),
            };
            after += "\"";
            rest = next;
        }
        after += rest;
        for (indent, options) in [("", LoadOptions::table()), ("    ", GenerateOptions::table())] {
            let heading = format!("\n{indent}/// Options:\n{indent}///\n");
            let start = after.find(&heading).expect("the list is there") + heading.len();
            let entry = |line: &str| {
                line.trim_start().starts_with("/// - ") || line.trim_start().starts_with("///   ")
            };
            let lines = after[start..].split_inclusive('\n').take_while(|line| entry(line));
            let end = start + lines.map(str::len).sum::<usize>();
            let list: String = options.iter().map(|option| python_doc(indent, option)).collect();
            after.replace_range(start..end, &list);
        }
        after
    });
}

// C and C++.

/// Rewrites the first paragraph of the comment above each field that is an option. What follows it after an empty line
/// of the comment is special to the language, and stays.
fn comments(text: &str, head: &str, options: &[OptionInfo], is_field: impl Fn(&str, &str) -> bool) -> String {
    let start = text.find(head).unwrap_or_else(|| panic!("expected `{head}`"));
    let end = start + text[start..].find("\n}").expect("a struct ends");
    let mut lines: Vec<String> = text[start..end].lines().map(str::to_string).collect();
    for option in options {
        let at = lines.iter().position(|line| is_field(line, option.name));
        let at = at.unwrap_or_else(|| panic!("`{head}` has no field for the option {}", option.name));
        let is_comment = |line: &String| line.trim_start().starts_with("///");
        let above = lines[..at].iter().rev().take_while(|line| is_comment(line)).count();
        let paragraph = lines[at - above..at].iter().take_while(|line| line.trim() != "///").count();
        let comment = wrapped("    /// ", "    /// ", &option.to_string());
        lines.splice(at - above..at - above + paragraph, comment.lines().map(str::to_string));
    }
    format!("{}{}{}", &text[..start], lines.join("\n"), &text[end..])
}

#[test]
fn the_c_structs_have_the_options() {
    for (file, name, options) in [
        ("load", "load", LoadOptions::table()),
        ("request", "generate", GenerateOptions::table()),
        ("score", "score", ScoreOptions::table()),
    ] {
        check(&format!("welm-capi/src/{file}.rs"), |text| {
            let is_field = |line: &str, name: &str| {
                // A time is a number of milliseconds.
                [format!("    pub {name}: "), format!("    pub {name}_ms: ")]
                    .iter()
                    .any(|f| line.starts_with(f))
            };
            comments(text, &format!("pub struct welm_{name}_options {{"), &options, is_field)
        });
    }
}

#[test]
fn the_cpp_structs_have_the_options() {
    check("include/welm_types.hpp", |text| {
        let is_field = |line: &str, name: &str| {
            let declared = line.split([';', '=', '{']).next().unwrap_or_default().trim_end();
            line.starts_with("    ") && declared.ends_with(&format!(" {name}")) && !declared.contains("///")
        };
        let text = comments(text, "struct LoadOptions {", &LoadOptions::table(), is_field);
        let text = comments(&text, "struct GenerateOptions {", &GenerateOptions::table(), is_field);
        comments(&text, "struct ScoreOptions {", &ScoreOptions::table(), is_field)
    });
}

// How many files an option touches.

/// Files that these tests and that of the header write.
const WRITTEN: [&str; 5] = [
    "README.md",
    "include/welm.h",
    "welm-py/python/welm/_options.py",
    "welm-py/python/welm/_welm.pyi",
    "welm-py/src/model.rs",
];

/// Files below a folder that have this word, but for tests.
fn naming(word: &str, folder: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(repository().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if folder == "." { name.clone() } else { format!("{folder}/{name}") };
        if entry.file_type().unwrap().is_dir() {
            naming(word, &path, found);
        } else if let Ok(text) = fs::read_to_string(entry.path())
            && name != "tests.rs"
            && text.split(|c: char| c != '_' && !c.is_alphanumeric()).any(|w| w == word)
        {
            found.push(path);
        }
    }
}

/// The files that have to be written for a new option of loading that is yes or no: those that an old one is in.
#[test]
fn an_option_is_written_by_hand_in_few_files() {
    let mut found = Vec::new();
    for folder in ["include", "welm-capi/src", "welm-core/src", "welm-py/src", "welm-py/python"] {
        naming("copy_weights", folder, &mut found);
    }
    found.sort_unstable();
    let (effect, everywhere): (Vec<_>, Vec<_>) = found
        .into_iter()
        .filter(|path| !WRITTEN.contains(&&path[..]))
        .partition(|path| path.starts_with("welm-core/src/") && !path.starts_with("welm-core/src/options/"));
    let by_hand = [
        "include/welm_types.hpp",
        "welm-capi/src/load.rs",
        "welm-core/src/options/load.rs",
        "welm-py/src/options.rs",
    ];
    assert_eq!(everywhere, by_hand);
    assert_eq!(effect, ["welm-core/src/backend/cpu/mod.rs"], "where it has its effect");
}
