use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;
use crate::{Device, LoadOptions, Model};

fn template(source: &str) -> ChatTemplate {
    named(&[("default", source)])
}

fn named(sources: &[(&str, &str)]) -> ChatTemplate {
    let sources = sources.iter().map(|(name, source)| (name.to_string(), source.to_string())).collect();
    ChatTemplate::from_gguf(Ok(sources), Some("<s>"), Some("</s>"))
}

fn render(source: &str) -> Result<String> {
    template(source).render(&ChatRequest::new([Message::new("user", "Hi")]))
}

fn asked(messages: &[Message], add_generation_prompt: bool) -> ChatRequest {
    let mut request = ChatRequest::new(messages);
    request.add_generation_prompt = Some(add_generation_prompt);
    request
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(file);
    std::fs::read_to_string(path).unwrap()
}

fn fixture() -> Value {
    serde_json::from_str(&read("chat.json")).unwrap()
}

fn messages(conversation: &Value) -> Vec<Message> {
    let message = |m: &Value| Message::new(m[0].as_str().unwrap(), m[1].as_str().unwrap());
    conversation.as_array().unwrap().iter().map(message).collect()
}

#[test]
fn texts_are_those_of_transformers() {
    let fixture = fixture();
    for case in fixture["cases"].as_array().unwrap() {
        let messages = messages(&fixture["conversations"][case["conversation"].as_u64().unwrap() as usize]);
        let name = case["template"].as_str().unwrap();
        let template = template(fixture["templates"][name].as_str().unwrap());
        let got = template.render(&asked(&messages, case["add_generation_prompt"].as_bool().unwrap()));
        match (case["text"].as_str(), case["error"].as_str()) {
            (Some(want), None) => assert_eq!(got.as_deref(), Ok(want), "{name}: {messages:?}"),
            (None, Some(want)) => {
                let got = got.unwrap_err().to_string();
                assert!(got.starts_with("chat template: ") && got.contains(want), "{got}, not {want}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Requests with all arguments of `apply_chat_template`: messages, tools, documents and variables.
#[test]
fn requests_are_those_of_transformers() {
    let fixture: Json = read("chat.json").parse().unwrap();
    let at = |list: &str, i: &Json| match (fixture.get(list), i) {
        (Some(Json::List(items)), Json::Int(i)) => items[*i as usize].clone(),
        other => panic!("{other:?}"),
    };
    let Some(Json::List(cases)) = fixture.get("requests") else { panic!("no requests") };
    assert!(cases.len() > 300);
    for case in cases {
        let Json::List(case) = case else { panic!("{case:?}") };
        let [Json::String(name), dialogue, arguments, expected] = &case[..] else { panic!("{case:?}") };
        let request = match arguments {
            Json::Null => dialogue.clone(),
            arguments => {
                let mut fields = vec![("messages".to_string(), at("dialogues", dialogue))];
                fields.push(("add_generation_prompt".into(), false.into()));
                let Json::Object(arguments) = at("arguments", arguments) else { panic!("{case:?}") };
                fields.extend(arguments);
                Json::Object(fields)
            }
        };
        let request = ChatRequest::try_from(request).unwrap();
        let source = fixture.get("tool_templates").and_then(|t| t.get(name)?.as_str()).unwrap();
        let got = template(source).render(&request);
        match expected {
            Json::String(expected) => assert_eq!(got.as_ref(), Ok(expected), "{name}: {request:?}"),
            _ => assert!(got.is_err(), "{name}: {request:?}: {got:?}"),
        }
    }
}

/// Parts of the errors for everything that the fixture has and that is not supported.
const UNSUPPORTED: [&str; 23] = [
    "the filter",
    "the attribute",
    "a view of a dict",
    "# in the format",
    "text that `safe` has marked",
    "127 bits",
    "53 bits",
    "120 bits",
    "sameas",
    "\\N",
    "the tag",
    "the text of a",
    "capital",
    "a field in a field",
    "an attribute or an item",
    "without its type",
    "no ASCII",
    "the function",
    "the variable self",
    "pprint",
    "separator",
    "two methods",
    "views",
];

/// Every expression gives the same as in Python, or an error. If Python supports it and this does not, the error says
/// so.
#[test]
fn expressions_are_those_of_python() {
    let fixture: Json = read("chat_language.json").parse().unwrap();
    let Some(Json::Object(variables)) = fixture.get("variables") else { panic!("no variables") };
    let Some(Json::List(cases)) = fixture.get("cases") else { panic!("no cases") };
    let (mut texts, mut absent) = (0, 0);
    for case in cases {
        let Json::List(case) = case else { panic!("{case:?}") };
        let [Json::String(source), expected] = &case[..] else { panic!("{case:?}") };
        let mut request = ChatRequest::new([Message::new("user", "")]);
        request.variables = variables.clone();
        let got = template(source).render(&request);
        match (expected, got) {
            (Json::String(expected), Ok(got)) => {
                assert_eq!(got, *expected, "{source}");
                texts += 1;
            }
            (Json::String(_), Err(error)) => {
                let error = error.to_string();
                let (_, what) = error
                    .split_once("not supported in templates: ")
                    .unwrap_or_else(|| panic!("{source}: {error}"));
                assert!(UNSUPPORTED.iter().any(|known| what.contains(known)), "{source}: {error}");
                absent += 1;
            }
            (_, Err(Error::ChatTemplate(_))) => {}
            (_, got) => panic!("{source}: expected an error, got {got:?}"),
        }
    }
    assert!(texts > 300 && absent < 20, "{texts} texts, {absent} absent");
}

/// The small model of the examples, loaded with these files beside it.
fn model(files: &[(&str, &str)]) -> Model {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/welm-nano");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(nano.join(file), folder.path().join(file)).unwrap();
    }
    for (file, text) in files {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let options = LoadOptions { device: Device::Cpu, cache_tokens: Some(64), ..LoadOptions::default() };
    Model::load(folder.path(), &options).unwrap()
}

#[test]
fn tokens_are_those_of_transformers() {
    let fixture = fixture();
    let model = model(&[
        ("chat_template.jinja", fixture["templates"]["nano"].as_str().unwrap()),
        // `chat_template.jinja` counts before this, and a token may be an object.
        (
            "tokenizer_config.json",
            r#"{"chat_template": "not this one", "eos_token": {"content": "<|endoftext|>", "special": true}}"#,
        ),
    ]);
    assert!(model.has_chat_template());
    let conversations = fixture["conversations"].as_array().unwrap();
    let messages = messages(&conversations[conversations.len() - 1]);
    let want: Vec<u32> =
        fixture["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    assert_eq!(model.chat_tokens(&messages, true).unwrap(), want);
    // A special token that is written in a message is also parsed.
    let end = model.token_id("<|endoftext|>").unwrap();
    assert_eq!(want.iter().filter(|&&id| id == end).count(), 3);
}

#[test]
fn a_folder_says_where_its_template_is() {
    let prompt = |files: &[(&str, &str)]| {
        let model = model(files);
        (model.has_chat_template(), model.chat_prompt(&[Message::new("user", "Hi")], false))
    };
    let text = |text: &str| (true, Ok(text.to_string()));
    let config = "tokenizer_config.json";
    assert_eq!(prompt(&[(config, r#"{"chat_template": "{{ messages[0].content }}!"}"#)]), text("Hi!"));
    let named =
        r#"{"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}"#;
    assert_eq!(prompt(&[(config, named)]), text("b"));
    // transformers 5.24 reads the map if the configuration lists no added tokens, and then it counts more.
    let map = r#"{"bos_token": {"content": "B"}, "eos_token": "no", "foo_token": "x"}"#;
    let template =
        r#""chat_template": "{{ bos_token ~ '|' ~ eos_token ~ '|' ~ pad_token ~ '|' ~ foo_token }}""#;
    for (listed, want) in [("", "B|no||x"), (r#""added_tokens_decoder": {}, "#, "|E||")] {
        let json = format!(r#"{{{listed}"bos_token": null, "eos_token": "E", {template}}}"#);
        assert_eq!(prompt(&[(config, &json), ("special_tokens_map.json", map)]), text(want));
    }

    for files in [&[][..], &[(config, "{}")], &[(config, r#"{"chat_template": null}"#)]] {
        assert_eq!(prompt(files), (false, Err(fault("this model has none"))));
    }
    let own = r#"{"image_token": "I", "add_x_token": true, "extra_special_tokens": {"boi": {"content": "O"}},
        "chat_template": {"default": "{{ image_token ~ boi ~ add_x_token }}"}}"#;
    assert_eq!(prompt(&[(config, own)]), text("IO"));
    let (present, error) = prompt(&[(config, r#"{"chat_template": [{"name": "rag", "template": ""}]}"#)]);
    assert!(present && error.unwrap_err().to_string().contains("one of the model's templates (rag)"));
    for config in [r#"{"chat_template": 1}"#, r#"{"chat_template": [{"name": "rag"}]}"#] {
        let (present, error) = prompt(&[("tokenizer_config.json", config)]);
        let Err(Error::ChatTemplate(reason)) = error else { panic!("{config}: {error:?}") };
        assert!(!present && reason.contains("tokenizer_config.json"), "{reason}");
    }
    let (present, error) = prompt(&[("chat_template.jinja", "{{")]);
    assert!(present && matches!(error, Err(Error::ChatTemplate(_))));
}

#[test]
fn one_of_several_templates_is_taken() {
    let several =
        named(&[("default", "d{{ tools is none }}"), ("tool_use", "t{{ tools | length }}"), ("rag", "r")]);
    let text = |template: &ChatTemplate, tools: bool, chat_template: Option<&str>| {
        let mut request = ChatRequest::new([Message::new("user", "Hi")]);
        request.tools = tools.then(Vec::new);
        request.chat_template = chat_template.map(str::to_string);
        template.render(&request).unwrap()
    };
    assert_eq!(text(&several, false, None), "dTrue");
    assert_eq!(text(&several, true, None), "t0");
    assert_eq!(text(&several, true, Some("default")), "dFalse");
    assert_eq!(text(&several, false, Some("rag")), "r");
    assert_eq!(text(&several, false, Some("own {{ bos_token }}")), "own <s>");
    // As in transformers, a single template has no name, so this is taken for the source of a template.
    assert_eq!(text(&template("d"), false, Some("default")), "default");
    let none = ChatTemplate::from_gguf(Ok(Vec::new()), None, None);
    assert_eq!(text(&none, false, Some("own")), "own");
}

#[test]
fn wrong_requests_name_what_is_wrong() {
    let error = |json: &str| match ChatRequest::from_json(json).and_then(|r| template("{{ x }}").render(&r)) {
        Err(error @ Error::InvalidOption { .. }) => error.to_string(),
        other => panic!("{json}: {other:?}"),
    };
    let message = r#""messages": [{"role": "user", "content": "x"}]"#;
    for (json, want) in [
        ("[".to_string(), "option `request`: expected JSON, got EOF"),
        ("[]".into(), "option `request`: expected an object with messages, got a list"),
        ("{}".into(), "option `messages`: expected a list, got none"),
        (r#"{"messages": null}"#.into(), "option `messages`: expected a list, got none"),
        (r#"{"messages": {}}"#.into(), "option `messages`: expected a list, got an object"),
        (r#"{"messages": []}"#.into(), "option `messages`: expected at least one, got none"),
        (
            r#"{"messages": [{}, "x"]}"#.into(),
            "option `messages`: messages[1]: expected an object, got a string",
        ),
        (format!(r#"{{{message}, "tools": {{}}}}"#), "option `tools`: expected a list, got an object"),
        (
            format!(r#"{{{message}, "tools": [{{}}, 1]}}"#),
            "option `tools`: tools[1]: expected an object, got a number",
        ),
        (
            format!(r#"{{{message}, "documents": ["x"]}}"#),
            "option `documents`: documents[0]: expected an object, got a string",
        ),
        (
            format!(r#"{{{message}, "add_generation_prompt": 1}}"#),
            "option `add_generation_prompt`: expected true or false, got a number",
        ),
        (
            format!(r#"{{{message}, "chat_template": 1}}"#),
            "option `chat_template`: expected a string, got a number",
        ),
        (
            format!(r#"{{{message}, "tokenize": true}}"#),
            "option `variables`: expected names of the template's variables, got \"tokenize\"",
        ),
        (format!(r#"{{{message}, "x": 123456789012345678901}}"#), "a number of more than 64 bits"),
        (format!(r#"{{{message}, "x": [1, 18446744073709551616]}}"#), "a number of more than 64 bits"),
        (format!(r#"{{{message}, "x": {{"\"1": -9223372036854775809}}}}"#), "a number of more than 64 bits"),
        (format!(r#"{{{message}, "x": -0}}"#), "expected 0 or -0.0, got the whole number -0"),
        (format!(r#"{{{message}, "x": 1e400}}"#), "number out of range"),
        (format!(r#"{{{message}, "x": 1}} 2"#), "trailing characters"),
        (
            format!(r#"{{{message}, "x": {}{}}}"#, "[".repeat(110), "]".repeat(110)),
            "option `variables`: x: expected values in at most 100",
        ),
        (format!(r#"{{{message}, "x": {}}}"#, "[".repeat(100_000)), "recursion limit"),
        (
            format!(r#"{{"messages": [{{"role": {}{}}}]}}"#, "[".repeat(110), "]".repeat(110)),
            "messages[0].role: expected values in",
        ),
        (
            format!(r#"{{{message}, "add_generation_prompt": true, "continue_final_message": true}}"#),
            "option `continue_final_message`",
        ),
    ] {
        let got = error(&json);
        assert!(got.contains(want), "{json:.100}: {got}");
    }
    for json in ["", "[]", "1", "{"] {
        assert!(
            matches!(Message::from_json(json), Err(Error::InvalidOption { option: "message", .. })),
            "{json}"
        );
    }
    // If a key comes twice, the last value counts, at the first place.
    let message = Message::from_json(r#"{"a": 1, "b": 2, "a": null}"#).unwrap();
    let request = ChatRequest::new([message.with("c", 1.5)]);
    assert_eq!(template("{{ messages[0] }}").render(&request).as_deref(), Ok("{'b': 2, 'c': 1.5}"));
    let mut request = ChatRequest::new([Message::new("user", "")]);
    request.variables = vec![("x".into(), i64::MAX.into()), ("y".into(), Json::Int(i128::MAX))];
    let text = template("{{ x }} {{ y }} {{ x + 1 }}").render(&request).unwrap();
    // Numbers are printed as in Python.
    let numbers = r#"[1e20, 3.4028234663852886e+38, 100000000000000000000.0, -0.0, 18446744073709551615, "99999999999999999999\\", -9223372036854775808, 1E5]"#;
    request.variables = vec![("x".into(), numbers.parse().unwrap())];
    assert_eq!(
        template("{{ x | tojson }}").render(&request).as_deref(),
        Ok(
            r#"[1e+20, 3.4028234663852886e+38, 1e+20, -0.0, 18446744073709551615, "99999999999999999999\\", -9223372036854775808, 100000.0]"#
        )
    );
    assert_eq!(text, "9223372036854775807 170141183460469231731687303715884105727 9223372036854775808");
}

#[test]
fn faults_of_templates_are_errors_with_their_line() {
    for (source, want) in [
        ("{{ 1 + }}", "line 1: unexpected '}}'"),
        ("a\n{% if %}", "line 2: expected an expression, got '%}'"),
        ("{% for m in messages %}", "expected 'endfor' or 'else', got the end of the template"),
        ("\n\n{{ raise_exception('no ' ~ bos_token) }}", "line 3: no <s>"),
        ("{{ nope() }}", "'nope' is undefined"),
        ("{{ 'a' | nope }}", "no filter named 'nope'"),
        ("{{ 'a' is nope }}", "no test named 'nope'"),
        ("{{ 'a'.nope() }}", "'str object' has no attribute 'nope'"),
        ("{{ missing.attribute }}", "'missing' is undefined"),
        ("{{ 'a' + 1 }}", "unsupported operand type(s) for +: 'str' and 'int'"),
        ("{{ 1 < 'a' }}", "'<' not supported between instances of 'int' and 'str'"),
        ("{% include 'a' %}", "not supported in templates: the tag include"),
        ("{% import 'a' as b %}", "not supported in templates: the tag import"),
        ("{% do messages.append(1) %}", "unknown tag do"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{{ messages[0].update({}) }}", "'update' of 'dict' object is unsafe"),
        ("{{ messages.__class__ }}", "not supported in templates: the attribute __class__"),
        ("{{ debug() }}", "'debug' is undefined"),
        ("{{ messages | tojson(indent=1001) }}", "not supported in templates: tojson with an indent"),
        ("{{ missing | tojson }}", "Undefined is not JSON serializable"),
        ("{{ range }}", "not supported in templates: the text of a function"),
        ("{{ strftime_now('%s') }}", "not supported in templates: %s in strftime_now"),
        ("{{ 1) }}", "not open"),
        ("{{ 'a }}", "not closed"),
        ("{{ ", "not closed"),
        ("{# ", "not closed"),
        ("{% raw %}", "not closed"),
        (
            "{% set ns = namespace() %}{% set ns.x = ns %}",
            "not supported in templates: a Namespace in another value",
        ),
    ] {
        let got = render(source).unwrap_err().to_string();
        assert!(got.starts_with("chat template: line ") && got.contains(want), "{source}: {got}");
    }
    let request = ChatRequest::new([Message::new("user", "")]);
    let none = ChatTemplate::from_gguf(Ok(Vec::new()), None, None);
    assert!(!none.is_present());
    assert_eq!(none.render(&request), Err(fault("this model has none")));
    let broken = ChatTemplate::from_gguf(Err(Error::config("key", "reason")), None, None);
    assert_eq!(broken.render(&request), Err(Error::config("key", "reason")));
}

/// Templates that would end or stall the process by time, memory or depth, each with the bound that stops it.
#[test]
fn hostile_templates_end() {
    const N: usize = 100_000;
    const BUDGET: &str = "ran out of its budget";
    const DEEP: &str = "statements and macros at most 1500 deep";
    const NEST: &str = "tags or brackets in each other";
    const CHAIN: &str = "expressions at most 600 deep";
    const INSIDE: &str = "values in at most 128 others";
    const SIZE: &str = "cannot fit 'int' into an index-sized integer";
    let big = "([('a' * 90000)] * 100000)";
    let in_loop = |line: &str| {
        format!("{{% set ns = namespace(x=1, y=1) %}}{{% for i in range(99999) %}}{line}{{% endfor %}}")
    };
    let doubled =
        "{% set ns = namespace(t=(1,)) %}{% for i in range(60) %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}";
    let mut cases = vec![
        ("{% for i in range(10**9) %}x{% endfor %}".to_string(), "range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}".into(), BUDGET),
        ("{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".into(), DEEP),
        ("{% for a in [1] recursive %}{{ loop([a]) }}{% endfor %}".into(), DEEP),
        (format!("{}{{{{ s }}}}", "{% set s = (s or 'a') ~ (s or 'a') %}".repeat(60)), BUDGET),
        (in_loop("{% set ns.x = ns.x ~ ns.x %}"), BUDGET),
        (in_loop("{% set ns.x = [ns.x] %}"), INSIDE),
        (in_loop("{% set ns.x = {'a': ns.x} %}"), INSIDE),
        (in_loop("{% set ns.x = namespace(x=ns.x) %}"), "a Namespace in another value"),
        (in_loop("{% set ns.x = [ns.x, ns.x] %}"), INSIDE),
        (in_loop("{% set ns.x = [ns.x] | batch(2, 1) %}"), INSIDE),
        (in_loop("{% set ns.x = dict(a=ns.x) %}"), INSIDE),
        ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".into(), "a Namespace in another value"),
        ("{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x ~ '' }}".into(), "a Namespace in another value"),
        ("{% for x in [1] %}{{ loop.changed(loop) }}{% endfor %}".into(), "a LoopContext in another value"),
        ("{% for x in [1] %}{{ loop.changed(1, loop.cycle) }}{% endfor %}".into(), "a LoopContext in another value"),
        (format!("{}{{{{ q }}}}", "{% set q = [q, q] %}".repeat(60)), BUDGET),
        (format!("{}{{{{ q == q }}}}", "{% set q = q + q %}".repeat(60).replacen("q + q", "[1]", 1)), BUDGET),
        ("{% macro f(q) %}{{ f(q + q) }}{% endmacro %}{{ f(['a' * 100000]) }}".into(), BUDGET),
        (format!("{doubled}{{{{ {{ns.t: 1}} }}}}"), BUDGET),
        (format!("{doubled}{{{{ ns.t in {{}} }}}}"), BUDGET),
        (format!("{doubled}{{{{ {{}}[ns.t] }}}}"), BUDGET),
        (format!("{doubled}{{{{ {{}}.get(ns.t) }}}}"), BUDGET),
        (format!("{doubled}{{{{ dict([(ns.t, 1)]) }}}}"), BUDGET),
        (format!("{doubled}{{{{ [ns.t] | unique | list }}}}"), BUDGET),
        (format!("{doubled}{{{{ ns.t == ns.t }}}}"), BUDGET),
        (format!("{{{{ 'a' | map({}'list') | list }}}}", "'map', ".repeat(20_000)), BUDGET),
        (format!("{{{{ 'a' | map({}'list') | list }}}}", "'map', ".repeat(500)), DEEP),
        (format!("{{{{ ('a' * 40000) | map('map', {}'list') | list }}}}", "'list', ".repeat(9_000)), "list takes 0 arguments"),
        (format!("{{{{ ('a' * 40000) | select('in', {}) | list }}}}", "'b', ".repeat(9_000)), "in takes 1 arguments"),
        ("{% set s = '0.' * 2000000 ~ '0' %}{{ ('a' * 40000) | map(attribute=s) | list }}".into(), BUDGET),
        ("{% set s = '0.' * 2000000 ~ '0' %}{{ ('a' * 40000) | map(attribute=s, default='a') | list }}".into(), BUDGET),
        ("{% set s = '0.' * 2000000 ~ '0' %}{{ ('a' * 40000) | selectattr(s) | list }}".into(), BUDGET),
        ("{% set s = '0,' * 50000 ~ '0' %}{{ ('a' * 40000) | sort(attribute=s) }}".into(), BUDGET),
        (in_loop("{% set t = [] | sort(attribute='0,' * 90000) %}"), BUDGET),
        ("{% set l = ['A' * 900000] * 9999 %}{{ l | sort | length }}".into(), BUDGET),
        ("{% set l = ['A' * 900000] * 9999 %}{{ l | max | length }}".into(), BUDGET),
        (in_loop("{% if 'a'.startswith(('a' * 9000,) * 9) %}{% endif %}"), BUDGET),
        (format!("{{{{ {} }}}}", "a".repeat(1001)), "a name of at most 1000 bytes"),
        ("{{ range(99999) | map(attribute='x') | map('default', [['a' * 100000]]) | string }}".into(), BUDGET),
        ("{{ '%1000000000d' | format(1) }}".into(), BUDGET),
        ("{{ '{:1000000000d}'.format(1) }}".into(), BUDGET),
        ("{{ 'a' | indent(1000000000) | indent(1000000000, true) }}".into(), BUDGET),
        ("{{ [1] | batch(1000000000, 'x') | list }}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% if s[899999] %}{% endif %}{% endfor %}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% if s.count('b') %}{% endif %}{% endfor %}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{{ s | length }}{{ s.replace('a', s) }}{% endfor %}".into(), BUDGET),
        (format!("{{{{ x{} }}}}", ".b".repeat(N)), CHAIN),
        (format!("{{{{ {} 1 }}}}", "not ".repeat(N)), NEST),
        (format!("{{{{ {} 1 }}}}", "-".repeat(N)), NEST),
        (format!("{{{{ 1{} }}}}", "|abs".repeat(N)), CHAIN),
        (format!("{{{{ x{} }}}}", "[0]".repeat(N)), CHAIN),
        (format!("{{{{ {}1 }}}}", "1 if x else ".repeat(50_000)), NEST),
        (format!("{{{{ {}1{} }}}}", "(".repeat(N), ")".repeat(N)), NEST),
        (format!("{{{{ {}1{} }}}}", "[".repeat(1000), "]".repeat(1000)), NEST),
        (format!("{}{}", "{% if 1 %}".repeat(1000), "{% endif %}".repeat(1000)), NEST),
        (" ".repeat(MAX_TEMPLATE + 1), "expected at most 1048576 bytes, got 1048577"),
        (format!("{{{{ {}1{} }}}}", "{'a':".repeat(N), "}".repeat(N)), NEST),
        (format!("{{% for {}x{} in [1] %}}{{% endfor %}}", "(".repeat(N), ")".repeat(N)), NEST),
        (format!("{}{}", "{% macro f() %}".repeat(1000), "{% endmacro %}".repeat(1000)), NEST),
        ("{% macro f(n) %}{{ f([n]) }}{% endmacro %}{{ f(0) }}".into(), INSIDE),
        ("{% macro f() %}{{ caller is defined }}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}".into(), DEEP),
        ("{{ '%1000000000s' % 1 }}".into(), BUDGET),
        ("{{ '%*d' % (10 ** 12, 1) }}".into(), BUDGET),
        ("{{ '%.1000000000f' % 1.5 }}".into(), "precision"),
        ("{{ '{:>1000000000}'.format('a') }}".into(), BUDGET),
        ("{{ '{:.1000000000f}'.format(1.5) }}".into(), "precision"),
        ("{{ '%99999999999999999999999s' % 1 }}".into(), "too many decimal digits"),
        ("{{ 'a'.center(1000000000) }}".into(), BUDGET),
        ("{{ 'a'.ljust(10 ** 30) }}".into(), SIZE),
        ("{{ 'a'.zfill(1000000000) }}".into(), BUDGET),
        ("{{ 'a' | center(1000000000) }}".into(), BUDGET),
        ("{{ 'a\nb' | indent(10 ** 15) }}".into(), BUDGET),
        ("{{ 'a' * 10 ** 30 }}".into(), SIZE),
        ("{{ [1] * 10 ** 12 }}".into(), BUDGET),
        ("{{ [] | slice(10 ** 12) | list }}".into(), BUDGET),
        ("{{ 9 ** 9 ** 9 }}".into(), "127 bits"),
        ("{{ messages | tojson(indent=999) * 10000 }}".into(), BUDGET),
        ("{{ (range(99999) | list | tojson(separators=('a' * 900000, ''))) }}".into(), BUDGET),
        ("{{ ('a' * 900000).replace('', 'b' * 900000) }}".into(), BUDGET),
        ("{{ ('a' * 900000).join(range(99999) | map('string')) }}".into(), BUDGET),
        ("{{ range(99999) | join('a' * 900000) }}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% set t = s.strip('bc') %}{% endfor %}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% set t = s.split('b') %}{% endfor %}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% set t = s[::-1] %}{% endfor %}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% set t = s == s ~ 'b' %}{% set t = s ~ 'c' in s %}{% endfor %}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% set t = {s: 1} %}{% endfor %}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% set t = messages[0][s] %}{% endfor %}".into(), BUDGET),
        ("{% set s = 'a' * 900000 %}{% set ns = namespace() %}{% for i in range(99999) %}{% set t = ns[s] %}{% endfor %}".into(), BUDGET),
        ("{% set l = range(99999) | list %}{% for i in l %}{% for j in l | sort %}{% endfor %}{% endfor %}".into(), BUDGET),
        ("{% set l = range(99999) | list %}{% for i in l %}{% set t = -1 in l %}{% endfor %}".into(), BUDGET),
        ("{% set l = range(99999) | list %}{% for i in l %}{% set t = l[1:] %}{% set u = l | unique | list %}{% endfor %}".into(), BUDGET),
        ("{% set l = range(9999) | list %}{% for i in l %}{% set t = l.index(9998) %}{% endfor %}".into(), BUDGET),
        ("{% for i in range(99999) %}{% set t = cycler(*range(99999)) %}{% endfor %}".into(), BUDGET),
        ("{% set d = dict(a='a' * 9000) %}{% for i in range(99999) %}{% set d = dict(d, x=d) %}{{ d }}{% endfor %}".into(), BUDGET),
        ("{% macro f() %}{{ varargs | length }}{% endmacro %}{% for i in range(99999) %}{{ f(*range(99999)) }}{% endfor %}".into(), BUDGET),
        ("{% set a %}{% for i in range(99999) %}{{ 'a' * 9000 }}{% endfor %}{% endset %}".into(), BUDGET),
    ];
    for (consumer, stops) in [
        ("{{ BIG }}", BUDGET),
        ("{{ BIG ~ '' }}", BUDGET),
        ("{{ '' ~ BIG }}", BUDGET),
        ("{{ BIG | string }}", BUDGET),
        ("{{ BIG | upper }}", BUDGET),
        ("{{ BIG | pprint }}", BUDGET),
        ("{{ BIG | tojson }}", BUDGET),
        ("{{ [BIG] | join }}", BUDGET),
        ("{{ BIG | replace('a', 'b') }}", BUDGET),
        ("{{ BIG == BIG }}{{ BIG }}", BUDGET),
        ("{{ '%s' % (BIG,) }}", BUDGET),
        ("{{ '%r' % [BIG] }}", BUDGET),
        ("{{ BIG | safe }}", BUDGET),
        ("{{ BIG | e }}", BUDGET),
        ("{{ BIG | urlencode }}", "expected pairs"),
        ("{{ raise_exception(BIG) }}", BUDGET),
        ("{{ '%s' | format(BIG) }}", BUDGET),
        ("{{ '{}'.format(BIG) }}", BUDGET),
        ("{{ BIG in 'b' }}{{ BIG }}", "requires string"),
        ("{{ {BIG: 1} }}", "unhashable type"),
        ("{% set x %}{{ BIG }}{% endset %}", BUDGET),
        ("{% macro f(x=BIG) %}{{ x }}{% endmacro %}{{ f() }}", BUDGET),
        ("{% with x = BIG %}{{ x }}{% endwith %}", BUDGET),
        ("{% for x in BIG %}{{ x }}{% endfor %}", BUDGET),
        ("{% filter replace('a', BIG) %}a{% endfilter %}", BUDGET),
    ] {
        cases.push((consumer.replace("BIG", big), stops));
        // The same with a list that holds one list many times. It costs little until something reads all of it.
        let listed = "{% set l = [['a' * 9000] * 99] * 99 %}";
        cases.push((format!("{listed}{}", consumer.replace("BIG", "[l, l, l]")), stops));
    }
    cases.push((format!("{{{{ {big} | sum(start=[]) }}}}"), "unsupported operand"));
    cases.push((format!("{{{{ ''.join({big}) }}}}"), BUDGET));
    let mut wrong = Vec::new();
    for (source, stops) in cases {
        let shown: String = source.chars().take(150).collect();
        let started = Instant::now();
        let result = render(&source);
        assert!(started.elapsed() < Duration::from_secs(20), "{shown}: {:?}", started.elapsed());
        match result {
            Err(Error::ChatTemplate(message)) if message.contains(stops) => {}
            other => {
                wrong.push(format!("{shown}: expected {stops}, got {:.300?}", other.map(|text| text.len())))
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A template with very many names or keys is accepted, and does not take quadratic time.
#[test]
fn long_lists_of_names_are_read() {
    let names = |n: usize, end: &str| (0..n).map(|i| format!("a{i}{end}")).collect::<String>();
    for (source, want) in [
        (format!("{{% macro f({}b) %}}{{% endmacro %}}ok", names(100_000, ",")), "ok"),
        (format!("{{{{ dict({}b=1) | length }}}}", names(30_000, "=1,")), "30001"),
        (
            format!("{{% set d = dict({}b=1) %}}{{{{ dict(c=1, **d) | length }}}}", names(20_000, "=1,")),
            "20002",
        ),
        (format!("{{% if x %}}{{{{ 1 | {}b }}}}{{% endif %}}ok", names(100_000, ".")), "ok"),
        ("{{ 'a' | map('map', 'map', 'map', 'list') | map('list') | list }}".into(), ""),
        (
            "{{ [[['a', 'b']], []] | map('map', 'map', 'upper') | map('map', 'list') | map('list') | list }}"
                .into(),
            "[[['A', 'B']], []]",
        ),
    ] {
        let got = render(&source);
        if want.is_empty() {
            assert!(got.is_err(), "{source:.80}: {got:?}");
        } else {
            assert_eq!(got.as_deref(), Ok(want), "{source:.80}");
        }
    }
    let keys: String = (0..300_000).map(|i| format!(r#""k{}": {i}, "#, i % 100_000)).collect();
    let message = format!(r#"{{{keys}"role": "user"}}"#);
    let started = Instant::now();
    let request = ChatRequest::from_json(&format!(r#"{{{keys}"messages": [{message}]}}"#)).unwrap();
    assert_eq!(request.variables.len(), 100_000);
    assert_eq!(request.variables[7], ("k7".into(), 200_007.into()));
    assert_eq!(request.messages[0].get("k99999"), Some(&299_999.into()));
    assert_eq!(
        template("{{ messages[0] | length }} {{ k7 }}").render(&request).as_deref(),
        Ok("100001 200007")
    );
    // About a second. It would be minutes if each key were compared with all others. The bound allows for a busy
    // machine.
    assert!(started.elapsed() < Duration::from_secs(100), "{:?}", started.elapsed());
}

/// The deepest templates that are allowed do not overflow the stack.
#[test]
fn chains_within_the_bounds_are_rendered() {
    let n = 590;
    let macros = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% else %}1{% endif %}{% endmacro %}";
    for (source, want) in [
        (format!("{{{{ 1{} }}}}", " ** 1".repeat(n)), "1"),
        (format!("{{{{ 1{} }}}}", " + 0".repeat(n)), "1"),
        (format!("{{{{ ''{} 1 }}}}", " ~ ''".repeat(9000) + " ~"), "1"),
        (format!("{{{{ 1{} }}}}", "|abs".repeat(n)), "1"),
        (format!("{{{{ 'a'{} }}}}", "[0]".repeat(n)), "a"),
        (format!("{{{{ {} 1 }}}}", "not ".repeat(140)), "True"),
        (format!("{{{{ {}1 }}}}", "- ".repeat(140)), "1"),
        (format!("{{{{ {}1 }}}}", "1 if x else ".repeat(140)), "1"),
        (format!("{{{{ {}1{} }}}}", "(".repeat(140), ")".repeat(140)), "1"),
        (format!("{{% if x %}}{}{{% else %}}1{{% endif %}}", "{% elif x %}".repeat(50_000)), "1"),
        (format!("{}1{}", "{% if 1 %}".repeat(140), "{% endif %}".repeat(140)), "1"),
        (format!("{macros}{{{{ f(200) }}}}"), "1"),
        (format!("{}{{{{ q | string | length }}}}", "{% set q = [q] %}".repeat(120)), "249"),
    ] {
        assert_eq!(render(&source).as_deref(), Ok(want), "{source:.80}");
    }
}

#[test]
fn long_conversations_have_fuel() {
    let source = "{%- for m in messages %}{{ m.role ~ ': ' ~ m.content | trim }}{% if loop.index == messages | length %}.{% endif %}{% endfor %}";
    let messages: Vec<Message> = (0..2000).map(|i| Message::new("user", "长".repeat(i % 50))).collect();
    assert!(template(source).render(&asked(&messages, true)).unwrap().ends_with("长."));
    let long = asked(&[Message::new("user", "word ".repeat(1 << 20))], true);
    assert_eq!(template(source).render(&long).unwrap().len(), 6 + 5 * (1 << 20) - 1 + 1);
    // A template that reads all messages for each message, and all characters of one.
    let source = "{% for m in messages %}{% for o in messages[loop.index0:] %}{% if o.role == 'x' %}{% endif %}{% endfor %}{% endfor %}{% for c in messages[49].content %}{{ c }}{% endfor %}";
    assert!(template(source).render(&asked(&messages[..400], true)).unwrap().ends_with("长"));
}

#[test]
fn many_messages_buy_no_memory() {
    let messages = vec![Message::new("a", ""); 300_000];
    let failed = template("{{ 'x' * 6000000000 }}").render(&asked(&messages, true)).unwrap_err();
    assert!(failed.to_string().contains("budget of steps and memory"), "{failed}");
}

/// Which names a frame sets first is found before there is a budget, so it must not take long for any template.
#[test]
fn many_names_in_many_branches_take_no_time() {
    let open = "{%if 0%}{%set z=1%}{%elif 0%}{%set y=1%}".repeat(140);
    let names: String = (0..60_000).map(|i| format!("{{%set a{i}=1%}}")).collect();
    let source = format!("{open}{names}{}", "{%endif%}".repeat(140));
    let before = std::time::Instant::now();
    let request = ChatRequest::new([Message::new("user", "Hi")]);
    assert_eq!(template(&source).render(&request).unwrap(), "");
    assert!(before.elapsed().as_secs() < 10, "{:?}", before.elapsed());
}
