//! JSON, alone and as the header of a safetensors file.

use serde_json::{Value, json};

use super::Random;

/// A copy with one to three values that are wrong.
pub(super) fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let Ok(mut whole) = serde_json::from_slice::<Value>(bytes) else { return random.text(bytes) };
    for _ in 0..random.few() {
        let whole_before = random.one_in(8).then(|| whole.clone());
        let value = somewhere(&mut whole, random);
        *value = match (random.below(16), whole_before) {
            (_, Some(before)) => before,
            (0, _) => Value::Null,
            (1, _) => random.one_in(2).into(),
            (2, _) => json!([]),
            (3, _) => json!({}),
            (4, _) => String::from_utf8_lossy(&random.text(b"")).into_owned().into(),
            (5, _) => value.to_string().into(),
            (6, _) => json!([value.clone(), value.clone()]),
            (7, _) => random.float().into(),
            (8, _) => json!(-(random.integer(1) as i64).saturating_abs()),
            (9, _) => (0..random.below(400)).fold(Value::Null, |inner, _| json!([inner])),
            _ => changed(value, random),
        };
    }
    let mut text = whole.to_string();
    // What a tree cannot have.
    if random.one_in(24) {
        let wrong = [
            "NaN",
            "1e999",
            "-Infinity",
            "{\"a\":1,\"a\":2}",
            "99999999999999999999999",
            "\"\\ud800\"",
            "tru",
        ];
        let at = text.find(':').map_or(0, |at| at + 1);
        text.insert_str(at, random.pick(&wrong));
    }
    text.into_bytes()
}

/// The value, changed as its type has it.
fn changed(value: &Value, random: &mut Random) -> Value {
    match value {
        Value::Number(n) => match n.as_u64() {
            Some(n) => random.integer(n).into(),
            None => random.float().into(),
        },
        Value::String(text) => String::from_utf8_lossy(&random.text(text.as_bytes())).into_owned().into(),
        Value::Bool(b) => (!b).into(),
        Value::Array(values) if !values.is_empty() => {
            let (a, b) = (random.below(values.len()), random.below(values.len()));
            let mut values = values.clone();
            match random.below(4) {
                0 => drop(values.remove(a)),
                1 => values.swap(a, b),
                2 => values.push(values[a].clone()),
                _ => values.truncate(a),
            }
            values.into()
        }
        Value::Object(fields) if !fields.is_empty() => {
            let mut fields = fields.clone();
            let keys: Vec<String> = fields.keys().cloned().collect();
            let (a, b) = (random.pick(&keys), random.pick(&keys));
            match random.below(3) {
                0 => drop(fields.remove(&a)),
                1 => drop(fields.insert(a, fields[&b].clone())),
                _ => {
                    let moved = fields.remove(&a);
                    fields.insert(
                        String::from_utf8_lossy(&random.text(a.as_bytes())).into_owned(),
                        moved.into(),
                    );
                }
            }
            fields.into()
        }
        _ => random.integer(0).into(),
    }
}

/// A value of the tree, seldom deep in it.
fn somewhere<'a>(value: &'a mut Value, random: &mut Random) -> &'a mut Value {
    let n = match value {
        Value::Array(values) => values.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    };
    if n == 0 || random.one_in(5) {
        return value;
    }
    let at = random.below(n);
    let inner = match value {
        Value::Array(values) => &mut values[at],
        Value::Object(fields) => fields.values_mut().nth(at).expect("below their number"),
        _ => unreachable!("it has values"),
    };
    somewhere(inner, random)
}

/// A copy of a safetensors file with a damaged header, or bytes of its tensors overwritten.
pub(super) fn damage_safetensors(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(*length.first_chunk().expect("eight bytes"));
    let (header, data) = rest.split_at(length as usize);
    if random.one_in(6) {
        let (byte, begin) = (random.pick(&[0u8, 0xFF, 0x7F]), random.below(data.len().max(1)));
        let mut copy = bytes.to_vec();
        let begin = bytes.len() - data.len() + begin;
        let end = (begin + random.below(4_096)).min(copy.len());
        copy[begin.min(end)..end].fill(byte);
        return copy;
    }
    let header = damage(header, random);
    let length = if random.one_in(8) { random.integer(header.len() as u64) } else { header.len() as u64 };
    [&length.to_le_bytes(), &header[..], data].concat()
}
