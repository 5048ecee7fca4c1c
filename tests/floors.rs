//! Checks that the modules of each crate are layers, which we call floors: a module imports only from lower floors, and
//! imports form no circles.
//!
//! Each crate's `lib.rs` lists its floors, the lowest first. An import is a `use`, or any other path from `crate`,
//! `super` or `self`, outside of tests. A path through a re-export counts as an import from the module that defines the
//! item. A module and the modules inside it may import each other freely. Among the modules inside one, imports must
//! not form circles.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Modules whose members may import each other, and why.
const CIRCLES: [(&str, &str); 1] = [(
    "tokenizer::chat::jinja",
    "an interpreter: values can be macros, which are evaluated, and filters call tests that call filters",
)];

type Module = Vec<String>;

/// The imports of one module.
#[derive(Default)]
struct Source {
    /// Each `use` and inline path, as it is written.
    paths: Vec<Vec<String>>,
    /// The paths of the names that `use` imports.
    names: HashMap<String, Vec<String>>,
    /// Modules in files of their own.
    files: Vec<String>,
}

/// All modules of a crate.
type Sources = BTreeMap<Module, Source>;

/// Reads a crate from its root; `read` gives the text of a module.
fn read_crate(read: &dyn Fn(&[String]) -> String) -> Sources {
    let mut sources = Sources::new();
    let mut left = vec![Module::new()];
    while let Some(module) = left.pop() {
        let tokens: TokenStream = read(&module).parse().expect("the source is Rust");
        scan(tokens, &module, &mut sources);
        let files = std::mem::take(&mut sources.get_mut(&module).expect("just scanned").files);
        left.extend(files.into_iter().map(|name| child(&module, &name)));
    }
    sources
}

fn child(module: &[String], name: &str) -> Module {
    module.iter().cloned().chain([name.to_string()]).collect()
}

/// Notes what a piece of a module imports.
fn scan(tokens: TokenStream, module: &[String], sources: &mut Sources) {
    sources.entry(module.to_vec()).or_default();
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut i = 0;
    while i < tokens.len() {
        match &tokens[i] {
            token if is_punct(token, '#') => {
                i += 1;
                let Some(TokenTree::Group(attribute)) = tokens.get(i) else { continue };
                if is_test(attribute.stream()) {
                    i = end_of_item(&tokens, i);
                }
            }
            TokenTree::Ident(word) if word == "mod" => {
                let name = tokens[i + 1].to_string();
                i += 2;
                match &tokens[i] {
                    TokenTree::Group(body) => scan(body.stream(), &child(module, &name), sources),
                    _ => sources.get_mut(module).expect("made above").files.push(name),
                }
            }
            // Not the `use<..>` of a type.
            TokenTree::Ident(word)
                if word == "use" && !tokens.get(i + 1).is_some_and(|t| is_punct(t, '<')) =>
            {
                let end = end_of_item(&tokens, i);
                let source = sources.get_mut(module).expect("made above");
                use_tree(&tokens[i + 1..end], &[], source);
                i = end;
            }
            TokenTree::Ident(word) if word == "crate" || word == "super" || word == "self" => {
                let mut path = vec![word.to_string()];
                while let [a, b, TokenTree::Ident(name), ..] = &tokens[i + 1..]
                    && is_punct(a, ':')
                    && is_punct(b, ':')
                {
                    path.push(name.to_string());
                    i += 3;
                }
                if path.len() > 1 {
                    sources.get_mut(module).expect("made above").paths.push(path);
                }
            }
            TokenTree::Group(group) => scan(group.stream(), module, sources),
            _ => {}
        }
        i += 1;
    }
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(p) if p.as_char() == wanted)
}

/// Whether an attribute is `cfg(test)` or `cfg(all(test, ..))`.
fn is_test(attribute: TokenStream) -> bool {
    let text = attribute.to_string().replace(' ', "");
    text.starts_with("cfg(test") || text.starts_with("cfg(all(test")
}

/// The place of the token that ends the item at `i`: a semicolon, or, of all but a `use`, its body.
fn end_of_item(tokens: &[TokenTree], i: usize) -> usize {
    let is_use = matches!(&tokens[i], TokenTree::Ident(word) if word == "use");
    let is_body = |token: &TokenTree| {
        !is_use && matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    let end = tokens[i..].iter().position(|token| is_punct(token, ';') || is_body(token));
    end.map_or(tokens.len(), |n| i + n)
}

/// Notes the paths of `a::{b, c::d as e}`.
fn use_tree(tokens: &[TokenTree], before: &[String], source: &mut Source) {
    for tree in tokens.split(|token| is_punct(token, ',')) {
        let (mut path, mut alias, mut inner) = (before.to_vec(), None, None);
        let mut tree = tree.iter();
        while let Some(token) = tree.next() {
            match token {
                TokenTree::Ident(word) if word == "as" => alias = tree.next().map(|name| name.to_string()),
                TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Group(group) => inner = Some(group.stream().into_iter().collect::<Vec<_>>()),
                _ => {}
            }
        }
        match inner {
            Some(inner) => use_tree(&inner, &path, source),
            None => {
                let Some(last) = path.last() else { continue };
                source.names.insert(alias.unwrap_or_else(|| last.clone()), path.clone());
                source.paths.push(path);
            }
        }
    }
}

/// The module of this crate in which the item of a path is; none for items of other crates.
fn module_of(sources: &Sources, from: &[String], path: &[String]) -> Option<Module> {
    let (mut at, mut rest) = match path[0].as_str() {
        "crate" => (Module::new(), &path[1..]),
        "self" => (from.to_vec(), &path[1..]),
        "super" => (from.to_vec(), path),
        name if sources.contains_key(&child(from, name)) => (from.to_vec(), path),
        _ => return None,
    };
    while let [name, after @ ..] = rest {
        if name == "super" {
            at.pop();
        } else if sources.contains_key(&child(&at, name)) {
            at.push(name.clone());
        } else {
            // A name that the module has from elsewhere.
            let elsewhere = sources[&at].names.get(name).filter(|elsewhere| elsewhere[..] != *path);
            return elsewhere.and_then(|path| module_of(sources, &at, path)).or(Some(at));
        }
        rest = after;
    }
    Some(at)
}

/// Of the modules inside one: which import which, with an example of each.
type Imports = BTreeMap<(String, String), String>;

/// Imports between siblings, by the module around them.
fn imports(sources: &Sources) -> BTreeMap<Module, Imports> {
    let mut all: BTreeMap<Module, Imports> = BTreeMap::new();
    for (from, source) in sources {
        for path in &source.paths {
            let Some(to) = module_of(sources, from, path) else { continue };
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
                let example = format!("`{}` in `{}`", path.join("::"), from.join("::"));
                let siblings = all.entry(from[..common].to_vec()).or_default();
                siblings.entry((a.clone(), b.clone())).or_insert(example);
            }
        }
    }
    all
}

/// A circle among some modules, if there is one.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    fn walk(imports: &Imports, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
        let here = way.last().expect("a way has a beginning").clone();
        for (_, next) in imports.keys().filter(|(from, _)| *from == here) {
            if let Some(at) = way.iter().position(|module| module == next) {
                return Some([&way[at..], std::slice::from_ref(next)].concat());
            }
            if !done.contains(next) {
                way.push(next.clone());
                if let Some(found) = walk(imports, way, done) {
                    return Some(found);
                }
                way.pop();
            }
        }
        done.insert(here);
        None
    }
    let mut done = BTreeSet::new();
    imports.keys().find_map(|(from, _)| walk(imports, &mut vec![from.clone()], &mut done))
}

/// The floors in the documentation of a root: the block after the line with "imports only from lower ones".
fn floors(root: &str) -> Vec<Vec<String>> {
    let lines = root.lines().skip_while(|line| !line.contains("imports only from lower ones"));
    let block = lines.skip_while(|line| *line != "//! ```text").skip(1).take_while(|line| *line != "//! ```");
    let names = |line: &str| {
        let list = line.trim_start_matches("//!").trim();
        let list = list.split("   ").next().unwrap_or_default();
        list.split(',').map(|name| name.trim().to_string()).collect()
    };
    block.map(names).collect()
}

/// What is wrong with the imports of a crate, in plain words.
fn faults(read: &dyn Fn(&[String]) -> String) -> Vec<String> {
    let sources = read_crate(read);
    let floors = floors(&read(&[]));
    let floor_of = |module: &str| floors.iter().position(|floor| floor.iter().any(|name| name == module));
    let mut faults = Vec::new();
    let top: Vec<&str> = sources.keys().filter(|m| m.len() == 1).map(|m| m[0].as_str()).collect();
    for module in top.iter().filter(|module| floor_of(module).is_none()) {
        faults.push(format!("`{module}` has no floor: add it to the list in the documentation of `lib.rs`"));
    }
    for name in floors.iter().flatten().filter(|name| !top.contains(&name.as_str())) {
        faults.push(format!("`{name}` has a floor in the documentation of `lib.rs`, and is no module"));
    }
    for (around, imports) in imports(&sources) {
        if around.is_empty() {
            for ((from, to), example) in &imports {
                if let (Some(a), Some(b)) = (floor_of(from), floor_of(to))
                    && a <= b
                {
                    let floor = if a == b { "on the same floor" } else { "on a higher floor" };
                    faults.push(format!(
                        "`{from}` imports `{to}`, which is {floor}: {example}; move what both need below `{from}`"
                    ));
                }
            }
        }
        if CIRCLES.iter().any(|(module, _)| *module == around.join("::")) {
            continue;
        }
        if let Some(circle) = circle(&imports) {
            let steps = circle.windows(2).map(|pair| &*imports[&(pair[0].clone(), pair[1].clone())]);
            let (way, steps) = (circle.join(" -> "), steps.collect::<Vec<_>>().join(", "));
            let place = if around.is_empty() { "crate".into() } else { around.join("::") };
            faults.push(format!("a circle in `{place}`: {way} ({steps})"));
        }
    }
    faults
}

/// Reads a module of a crate of this repository.
fn file_of(krate: &str, module: &[String]) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate).join("src");
    let stem = module.iter().fold(source, |path, name| path.join(name));
    let files = match module {
        [] => vec![stem.join("lib.rs")],
        _ => vec![stem.with_extension("rs"), stem.join("mod.rs")],
    };
    let found = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
    found.unwrap_or_else(|| panic!("no file of `{}` in {krate}", module.join("::")))
}

#[test]
fn imports_run_downwards() {
    for krate in ["welm-cpu", "welm-core", "welm-kernels", "welm-capi"] {
        let faults = faults(&|module: &[String]| file_of(krate, module));
        assert!(faults.is_empty(), "{krate}:\n{}", faults.join("\n"));
    }
}

#[test]
fn exceptions_are_needed() {
    let sources = read_crate(&|module: &[String]| file_of("welm-core", module));
    let imports = imports(&sources);
    for (module, why) in CIRCLES {
        let module: Module = module.split("::").map(str::to_string).collect();
        assert!(imports.get(&module).is_some_and(|imports| circle(imports).is_some()), "{module:?}: {why}");
    }
}

#[test]
fn what_is_planted_is_found() {
    let root = "//! A module imports only from lower ones:\n//!\n//! ```text\n//! low, aside   what it is\n//! high\n//! ```\nmod aside;\nmod high;\nmod low;\npub use high::Thing;\n";
    let of = |low: &str, high: &str, inner: [&str; 2]| {
        faults(&|module: &[String]| {
            match module.join("::").as_str() {
                "" => root,
                "low" => low,
                "high" => high,
                "aside" => "mod a; mod b;",
                "aside::a" => inner[0],
                "aside::b" => inner[1],
                other => panic!("{other}"),
            }
            .to_string()
        })
    };
    // Downwards, inside tests, in comments and in texts.
    let fine = "//! [`crate::high`]\n/// See [`crate::Thing`].\nconst TEXT: &str = \"crate::high::Thing\";\n\
                #[cfg(test)] mod tests { use crate::high::Thing; }\n#[cfg(test)] mod more;\n\
                pub(crate) fn f<'a>(c: &'a char) -> bool { *c == ':' } // crate::high::f()\n";
    let user = "use crate::low::f; use std::fmt; fn g() { crate::aside::a::h(); super::low::f(&'x'); }";
    assert_eq!(of(fine, user, ["pub fn h() {}", "use super::a::h;"]), Vec::<String>::new());

    let expect = |faults: Vec<String>, words: &[&str]| {
        let told = faults.iter().any(|fault| words.iter().all(|word| fault.contains(word)));
        assert!(told, "{words:?}: {faults:?}");
    };
    let higher = "`low` imports `high`, which is on a higher floor";
    for low in [
        "use crate::high::Thing;",
        "use crate::{high::{self, Thing}, aside};",
        "fn f() { let x = vec![crate::high::Thing::new()]; }",
        "fn f(x: &super::high::Thing) {}",
        "mod inner { fn f() -> super::super::high::Thing { todo!() } }",
        "macro_rules! m { () => { crate::high::g() }; }",
        "#[cfg(feature = \"x\")] use crate::high::Thing;",
        // Through the root, which has it from there.
        "use crate::Thing;",
        "fn f() -> crate::Thing { todo!() }",
    ] {
        expect(of(low, "", ["", ""]), &[higher, "in `low"]);
    }
    expect(of("use crate::aside::a;", "", ["", ""]), &["`low` imports `aside`, which is on the same floor"]);
    let around = ["use super::b::X;", "fn f() { crate::aside::a::g() }"];
    let way =
        "a circle in `aside`: a -> b -> a (`super::b::X` in `aside::a`, `crate::aside::a::g` in `aside::b`)";
    expect(of("", "", around), &[way]);
    expect(
        of("", "use self::inner::X; mod inner {}", ["use super::b::X; use super::super::low;", ""]),
        &["same floor"],
    );

    let short = root.replace("//! high\n", "//! gone\n");
    let faults = faults(&|module: &[String]| if module.is_empty() { short.clone() } else { String::new() });
    expect(faults.clone(), &["`high` has no floor"]);
    expect(faults, &["`gone` has a floor", "no module"]);
}
