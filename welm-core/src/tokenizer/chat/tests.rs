use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::*;
use crate::{Device, LoadOptions, Model};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_gguf(Ok(Some(source)), Some("<s>"), Some("</s>"))
}

fn render(source: &str) -> Result<String> {
    template(source).render(&[Message::new("user", "Hi")], true)
}

fn fixture() -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/chat.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn messages(conversation: &Json) -> Vec<Message> {
    let message = |m: &Json| Message::new(m[0].as_str().unwrap(), m[1].as_str().unwrap());
    conversation.as_array().unwrap().iter().map(message).collect()
}

#[test]
fn texts_are_those_of_transformers() {
    let fixture = fixture();
    for case in fixture["cases"].as_array().unwrap() {
        let messages = messages(&fixture["conversations"][case["conversation"].as_u64().unwrap() as usize]);
        let name = case["template"].as_str().unwrap();
        let template = template(fixture["templates"][name].as_str().unwrap());
        let got = template.render(&messages, case["add_generation_prompt"].as_bool().unwrap());
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

/// The small model, loaded with these files beside it.
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
        // The file of its own is taken, and the token may be an object.
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
    // Written in a message, the token is special all the same.
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
    let tokens = [
        (
            config,
            r#"{"bos_token": null, "eos_token": "E", "chat_template": "{{ bos_token ~ eos_token ~ pad_token }}"}"#,
        ),
        ("special_tokens_map.json", r#"{"bos_token": {"content": "B"}, "eos_token": "no"}"#),
    ];
    assert_eq!(prompt(&tokens), text("BE"));

    for files in [&[][..], &[(config, "{}")], &[(config, r#"{"chat_template": null}"#)]] {
        assert_eq!(prompt(files), (false, Err(fault("this model has none"))));
    }
    for config in [r#"{"chat_template": 1}"#, r#"{"chat_template": [{"name": "rag", "template": ""}]}"#] {
        let (present, error) = prompt(&[("tokenizer_config.json", config)]);
        assert!(!present && matches!(error, Err(Error::InvalidFile { .. })), "{config}: {error:?}");
    }
    let (present, error) = prompt(&[("chat_template.jinja", "{{")]);
    assert!(present && matches!(error, Err(Error::ChatTemplate(_))));
}

#[test]
fn faults_of_templates_are_errors_with_their_line() {
    for (source, want) in [
        ("{{ 1 + }}", "line 1"),
        ("a\n{% if %}", "line 2"),
        ("{% for m in messages %}", "end"),
        ("\n\n{{ raise_exception('no ' ~ bos_token) }}", "line 3: invalid operation: no <s>"),
        ("{{ nope() }}", "nope is unknown"),
        ("{{ 'a' | nope }}", "nope is unknown"),
        ("{{ 'a' is nope }}", "nope is unknown"),
        ("{{ 'a'.nope() }}", "no method named nope"),
        ("{{ missing.attribute }}", "undefined"),
        ("{{ 'a' + 1 }}", "+"),
        ("{% include 'a' %}", "unknown tag include"),
        ("{% import 'a' as b %}", "unknown tag import"),
        ("{% do messages.append(1) %}", "unknown tag do"),
        ("{{ debug() }}", "debug is unknown"),
        ("{{ messages | tojson(indent=17) }}", "at most 16"),
        ("{{ missing | tojson }}", "undefined"),
        ("{{ 1) }}", "not open"),
        ("{{ 'a }}", "not closed"),
        ("{{ ", "not closed"),
    ] {
        let got = render(source).unwrap_err().to_string();
        assert!(got.starts_with("chat template: ") && got.contains(want), "{source}: {got}");
    }
    let none = ChatTemplate::from_gguf(Ok(None), None, None);
    assert!(!none.is_present());
    assert_eq!(none.render(&[Message::new("user", "")], true), Err(fault("this model has none")));
    let error = template("x").render(&[], true).unwrap_err();
    assert_eq!(error.to_string(), "option `messages`: expected at least one, got none");
    let broken = ChatTemplate::from_gguf(Err(Error::config("key", "reason")), None, None);
    assert_eq!(broken.render(&[Message::new("user", "")], true), Err(Error::config("key", "reason")));
}

/// Templates that would take the process with them: by time, by memory, by depth.
#[test]
fn hostile_templates_end() {
    const N: usize = 100_000;
    let big = "([('a' * 90000)] * 100000)";
    let in_loop = |line: &str| {
        format!("{{% set ns = namespace(x=1, y=1) %}}{{% for i in range(99999) %}}{line}{{% endfor %}}")
    };
    let mut sources = vec![
        "{% for i in range(10**9) %}x{% endfor %}".to_string(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}".into(),
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".into(),
        "{% for a in [1] recursive %}{{ loop([a]) }}{% endfor %}".into(),
        format!("{}{{{{ s }}}}", "{% set s = (s or 'a') ~ (s or 'a') %}".repeat(60)),
        in_loop("{% set ns.x = ns.x ~ ns.x %}"),
        in_loop("{% set ns.x = [ns.x] %}"),
        in_loop("{% set ns.x = {'a': ns.x} %}"),
        in_loop("{% set ns.x = namespace(x=ns.x) %}"),
        in_loop("{% set ns.x = [ns.x, ns.x] %}"),
        in_loop("{% set ns.x = [ns.x] | zip([1]) %}"),
        in_loop("{% set ns.x = {} | chain({'a': ns.x}) %}"),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".into(),
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x ~ '' }}".into(),
        "{% set a = namespace() %}{% set a.x = a %}{% set b = namespace() %}{% set b.x = b %}{{ a == b }}".into(),
        format!("{}{{{{ q }}}}", "{% set q = [q, q] %}".repeat(60)),
        format!("{}{{{{ q == q }}}}", "{% set q = q + q %}".repeat(60).replacen("q + q", "[1]", 1)),
        "{% macro f(q) %}{{ f(q + q) }}{% endmacro %}{{ f(['a' * 100000]) }}".into(),
        "{% macro f(q) %}{{ f(q | chain(q)) }}{% endmacro %}{{ f(['a' * 100000]) }}".into(),
        "{{ range(99999) | map(attribute='x') | map('default', [['a' * 100000]]) | string }}".into(),
        "{{ '%1000000000d' | format(1) }}".into(),
        "{{ '{:1000000000d}'.format(1) }}".into(),
        "{{ 'a' | indent(1000000000) | indent(1000000000, true) }}".into(),
        "{{ [1] | batch(1000000000, 'x') | list }}".into(),
        "{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% if s[899999] %}{% endif %}{% endfor %}".into(),
        "{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% if s.count('b') %}{% endif %}{% endfor %}".into(),
        "{% set s = 'a' * 900000 %}{% for i in range(99999) %}{{ s | length }}{{ s.replace('a', s) }}{% endfor %}".into(),
        format!("{{{{ x{} }}}}", ".b".repeat(N)),
        format!("{{{{ 1{} }}}}", "~1".repeat(N)),
        format!("{{{{ {} 1 }}}}", "not ".repeat(N)),
        format!("{{{{ {} 1 }}}}", "-".repeat(N)),
        format!("{{{{ 1{} }}}}", "|abs".repeat(N)),
        format!("{{{{ x{} }}}}", "[0]".repeat(N)),
        format!("{{{{ {}1 }}}}", "1 if x else ".repeat(N)),
        format!("{{{{ {}1{} }}}}", "(".repeat(N), ")".repeat(N)),
        format!("{{{{ {}1{} }}}}", "[".repeat(1000), "]".repeat(1000)),
        format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(N / 2)),
        format!("{}{}", "{% if 1 %}".repeat(1000), "{% endif %}".repeat(1000)),
        " ".repeat(MAX_TEMPLATE + 1),
    ];
    for consumer in [
        "{{ BIG }}",
        "{{ BIG ~ '' }}",
        "{{ '' ~ BIG }}",
        "{{ BIG | string }}",
        "{{ BIG | upper }}",
        "{{ BIG | pprint }}",
        "{{ BIG | tojson }}",
        "{{ [BIG] | join }}",
        "{{ BIG | replace('a', 'b') }}",
        "{{ ''.join(BIG) }}",
        "{{ '%s' | format(BIG) }}",
        "{{ '{}'.format(BIG) }}",
        "{{ BIG in 'b' }}",
        "{{ {BIG: 1} }}",
        "{% set x %}{{ BIG }}{% endset %}",
        "{% macro f(x=BIG) %}{{ x }}{% endmacro %}{{ f() }}",
        "{% with x = BIG %}{{ x }}{% endwith %}",
        "{% call(x) f(BIG) %}{% endcall %}",
        "{% for x in BIG %}{{ x }}{% endfor %}",
        "{% if x is sameas BIG %}{% endif %}",
        "{% filter replace('a', BIG) %}a{% endfilter %}",
    ] {
        sources.push(consumer.replace("BIG", big));
        // The same without `*`: a list in a list, which costs little as long as none looks into it.
        let listed =
            "{% set l = [] %}{% set l = range(99) | map(attribute='x') | map('default', 'a' * 9000) %}";
        sources.push(format!("{listed}{}", consumer.replace("BIG", "[l, l, l]")));
    }
    for source in sources {
        let shown: String = source.chars().take(150).collect();
        let started = Instant::now();
        let result = render(&source);
        assert!(started.elapsed() < Duration::from_secs(20), "{shown}: {:?}", started.elapsed());
        match result {
            Err(Error::ChatTemplate(_)) => {}
            other => panic!("{shown}: {:?}", other.map(|text| text.len())),
        }
    }
}

/// As long as may be: the library's recursion has the stack that it needs.
#[test]
fn chains_within_the_bounds_are_rendered() {
    let n = 4090;
    for (source, want) in [
        (format!("{{{{ {} 1 }}}}", "not ".repeat(n)), "True"),
        (format!("{{{{ {}1 }}}}", "- ".repeat(n)), "1"),
        (format!("{{{{ 1{} }}}}", "|abs".repeat(n)), "1"),
        (format!("{{{{ 1{} }}}}", " ** 1".repeat(n / 2)), "1"),
        (format!("{{{{ 'a'{} }}}}", "[0]".repeat(n / 3)), "a"),
        (format!("{{{{ {}1 }}}}", "1 if x else ".repeat(n / 4)), "1"),
        (format!("{{% if x %}}{}{{% else %}}1{{% endif %}}", "{% elif x %}".repeat(512)), "1"),
        (format!("{}1{}", "{% if 1 %}".repeat(100), "{% endif %}".repeat(100)), "1"),
    ] {
        assert_eq!(render(&source).as_deref(), Ok(want));
    }
}

#[test]
fn what_is_put_in_changes_nothing_else() {
    for (source, want) in [
        (
            "{{ a.b(c)[d] | e(f, g=h) is not k and l }}",
            "{{ a.b(c|P)[d|P]|P | e(f|P, g=h|P)|P is not k and l|P }}",
        ),
        (
            "{% for (a, b), c in d.items() if e recursive %}",
            "{% for (a, b), c in d.items()|P if e|P recursive %}",
        ),
        ("{% set a.b, c = d, 'e' %}{% set x | f(y) %}", "{% set a.b, c = d|P, 'e' %}{% set x | f(y|P) %}"),
        (
            "{% macro m(a, b=c, d=[e]) %}{% endmacro m %}",
            "{% macro m(a, b=c|P, d=[e|P]|P) %}{% endmacro m %}",
        ),
        ("{% call(a, b) f(c) %}{% call g() %}", "{% call(a, b) f(c|P) %}{% call g() %}"),
        ("{% with a = b, c = (d, e) %}", "{% with a = b|P, c = (d|P, e|P)|P %}"),
        ("{{ a * b + c ** -d * 2 * (e) }}", "{{ a|S * b|S + c|P ** -d|S * 2 * (e|P)|S }}"),
        ("{{ f(*a, **b) }}{{ [a:b] }}", "{{ f(*a|P, **b|P)|P }}{{ [a|P:b|P]|P }}"),
        ("{{ a if b else c }}{{- 'a' 'b' -}}", "{{ a|P if b|P else c|P }}{{- 'a' 'b' -}}"),
        ("{{ {'}}': 1.5e3} }}{{ a.0.b }}", "{{ {'}}': 1.5e3}|P }}{{ a.0.b|P }}"),
        (
            "{#- {{ a }} #}{% raw -%} {{ b }} {%- endraw %}{ {{ c }}",
            "{#- {{ a }} #}{% raw -%} {{ b }} {%- endraw %}{ {{ c|P }}",
        ),
        ("{% filter upper | f(a) %}{% generation %}", "{% filter upper | f(a|P) %}{% if true %}"),
        ("{%- endgeneration -%}{% break %}", "{%- endif -%}{% break %}"),
        ("{{ a | length == b | last }}", "{{ a | length|P == b | last|P }}"),
    ] {
        let got = guard::guarded(source).unwrap().replace("|__paid", "|P").replace("|__scalar", "|S");
        assert_eq!(got, want);
    }
}

#[test]
fn long_conversations_have_fuel() {
    let source = "{%- for m in messages %}{{ m.role ~ ': ' ~ m.content | trim }}{% if loop.index == messages | length %}.{% endif %}{% endfor %}";
    let messages: Vec<Message> = (0..2000).map(|i| Message::new("user", "长".repeat(i % 50))).collect();
    assert!(template(source).render(&messages, true).unwrap().ends_with("长."));
    let long = [Message::new("user", "word ".repeat(1 << 20))];
    assert_eq!(template(source).render(&long, true).unwrap().len(), 6 + 5 * (1 << 20) - 1 + 1);
}
