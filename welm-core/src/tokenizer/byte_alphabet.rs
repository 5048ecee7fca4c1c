//! GPT-2's alphabet of 256 printable characters, one for each byte.

/// The byte that a character of GPT-2's alphabet stands for. Printable Latin-1 characters stand for their own byte. The
/// other 68 bytes, in ascending order, are U+0100 to U+0143.
pub(super) fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8), // bytes 00 to 20
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8), // bytes 7F to A0
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The character of GPT-2's alphabet for a byte.
pub(super) fn char_of(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x00..=0x20 => 0x100 + code,
        0x7F..=0xA0 => 0x121 + code - 0x7F,
        0xAD => 0x143,
    };
    char::from_u32(code).unwrap_or('\u{FFFD}')
}

/// The bytes of a byte-level token. A token with other characters is taken as UTF-8, as in the library.
pub(super) fn from_byte_alphabet(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_byte_alphabet_is_the_librarys() {
        let alphabet = ByteLevel::alphabet();
        assert_eq!(alphabet.len(), 256);
        let mut bytes: Vec<u8> = alphabet.iter().map(|&c| byte_of(c).unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert!((0..=255).all(|byte| byte_of(char_of(byte)) == Some(byte)));
        for c in (0..0x3000).filter_map(char::from_u32) {
            assert_eq!(byte_of(c).is_some(), alphabet.contains(&c), "{c:?}");
        }
        // ä½ł is 你 written byte by byte.
        assert_eq!(from_byte_alphabet("Ġä½ł"), " 你".as_bytes());
        assert_eq!(from_byte_alphabet("你"), "你".as_bytes());
    }
}
