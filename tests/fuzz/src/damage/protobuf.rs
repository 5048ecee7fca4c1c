//! Protocol buffers, of which SentencePiece's `tokenizer.model` is made: fields with numbers, some of them messages.

use super::Random;

enum Field {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Fixed32([u8; 4]),
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The fields of a message; none if it is not one.
fn read(mut bytes: &[u8]) -> Option<Vec<(u64, Field)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes)?;
        let mut take = |n: usize| {
            let (head, rest) = bytes.split_at_checked(n)?;
            bytes = rest;
            Some(head)
        };
        let field = match key & 7 {
            1 => Field::Fixed64(*take(8)?.first_chunk()?),
            5 => Field::Fixed32(*take(4)?.first_chunk()?),
            0 => Field::Varint(read_varint(&mut bytes)?),
            2 => {
                let n = read_varint(&mut bytes)? as usize;
                let (head, rest) = bytes.split_at_checked(n)?;
                bytes = rest;
                Field::Bytes(head.to_vec())
            }
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

fn write(fields: &[(u64, Field)], random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, field) in fields {
        let wire = match field {
            Field::Varint(_) => 0,
            Field::Fixed64(_) => 1,
            Field::Bytes(_) => 2,
            Field::Fixed32(_) => 5,
        };
        write_varint(number << 3 | wire, &mut out);
        match field {
            Field::Varint(value) => write_varint(*value, &mut out),
            Field::Fixed64(bytes) => out.extend(bytes),
            Field::Fixed32(bytes) => out.extend(bytes),
            Field::Bytes(bytes) => {
                let n = bytes.len() as u64;
                write_varint(if random.one_in(5_000) { random.integer(n) } else { n }, &mut out);
                out.extend(bytes);
            }
        }
    }
    out
}

/// A copy with one to three fields that are wrong.
pub(super) fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut fields = read(bytes).expect("a message");
    for _ in 0..random.few() {
        // The settings come after all pieces.
        let settings = fields.iter().position(|(number, _)| *number != 1).unwrap_or(0);
        let from = if random.one_in(2) { settings } else { 0 };
        damage_one(&mut fields, from, 0, random);
    }
    write(&fields, random)
}

fn damage_one(fields: &mut Vec<(u64, Field)>, from: usize, depth: usize, random: &mut Random) {
    if fields.is_empty() {
        return fields.push((1 + random.below(60) as u64, Field::Varint(random.integer(1))));
    }
    let at = from + random.below(fields.len() - from);
    let other = random.below(fields.len());
    let (number, field) = &mut fields[at];
    if let Field::Bytes(bytes) = field
        && depth < 2
        && !random.one_in(4)
        && let Some(mut inner) = read(bytes)
    {
        damage_one(&mut inner, 0, depth + 1, random);
        *bytes = write(&inner, random);
        return;
    }
    match random.below(8) {
        0 => drop(fields.remove(at)),
        1 => fields.swap(at, other),
        2 => *number = random.integer(*number) >> 3,
        3 => *field = Field::Varint(random.integer(0)),
        4 => *field = Field::Bytes(random.bytes(9)),
        _ => match field {
            Field::Varint(value) => *value = random.integer(*value),
            Field::Fixed32(bytes) => *bytes = (random.float() as f32).to_le_bytes(),
            Field::Fixed64(bytes) => *bytes = random.float().to_le_bytes(),
            Field::Bytes(bytes) => *bytes = random.text(bytes),
        },
    }
}
