//! [`Json`]: the type of the values in messages.

use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// A JSON value. Objects keep the order of their keys. Whole numbers keep all their digits.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Json {
    /// `null`, which templates see as `none`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// A text.
    String(String),
    /// A list.
    List(Vec<Json>),
    /// Keys with their values. If a key comes twice, the last value counts.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value of a key, if this is an object that has the key.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(fields) => fields.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// The name of its type, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a bool",
            Json::Int(_) | Json::Float(_) => "a number",
            Json::String(_) => "a string",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }

    /// The number of values in it, itself included, plus the bytes of their texts.
    pub(super) fn size(&self) -> usize {
        match self {
            Json::String(text) => 1 + text.len(),
            Json::List(items) => 1 + items.iter().map(Json::size).sum::<usize>(),
            Json::Object(fields) => {
                1 + fields.iter().map(|(key, value)| 1 + key.len() + value.size()).sum::<usize>()
            }
            _ => 1,
        }
    }

    /// Whether more than `limit` containers are nested in it. It looks no deeper, because a value that a program built
    /// may be nested deeper than any stack allows.
    pub(super) fn is_deeper_than(&self, limit: usize) -> bool {
        match (self, limit) {
            (Json::List(_) | Json::Object(_), 0) => true,
            (Json::List(items), limit) => items.iter().any(|item| item.is_deeper_than(limit - 1)),
            (Json::Object(fields), limit) => fields.iter().any(|(_, value)| value.is_deeper_than(limit - 1)),
            _ => false,
        }
    }
}

impl FromStr for Json {
    type Err = String;

    /// Reads a JSON text.
    ///
    /// # Errors
    /// What is wrong, in words: the text is no JSON, or has a whole number that 64 bits do not hold, or `-0`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let json = Reader.deserialize(&mut deserializer).and_then(|json| deserializer.end().map(|()| json));
        let json = json.map_err(|e| e.to_string())?;
        check_whole_numbers(text)?;
        Ok(json)
    }
}

/// Refuses whole numbers in a JSON text that the reader would change: those that do not fit in 64 bits, which would
/// lose digits, and `-0`.
fn check_whole_numbers(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while bytes.get(at).is_some_and(|b| *b != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let rest = &text[at..];
                let of_number = |c: char| matches!(c, '-' | '+' | '.' | 'e' | 'E' | '0'..='9');
                let number = &rest[..rest.find(|c| !of_number(c)).unwrap_or(rest.len())];
                let whole = !number.contains(['.', 'e', 'E']);
                if whole && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    return Err("a number of more than 64 bits".into());
                }
                if number == "-0" {
                    return Err("expected 0 or -0.0, got the whole number -0".into());
                }
                at += number.len();
            }
            _ => at += 1,
        }
    }
    Ok(())
}

struct Reader;

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Reader)? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = map.next_key()? {
            fields.push((key, map.next_value_seed(Reader)?));
        }
        Ok(Json::Object(fields))
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Json::String(text.into())
    }
}

impl From<&String> for Json {
    fn from(text: &String) -> Self {
        Json::String(text.clone())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Json::String(text)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Json::Bool(value)
    }
}

impl From<i64> for Json {
    fn from(value: i64) -> Self {
        Json::Int(value.into())
    }
}

impl From<f64> for Json {
    fn from(value: f64) -> Self {
        Json::Float(value)
    }
}

impl<J: Into<Json>> From<Vec<J>> for Json {
    fn from(items: Vec<J>) -> Self {
        Json::List(items.into_iter().map(Into::into).collect())
    }
}
