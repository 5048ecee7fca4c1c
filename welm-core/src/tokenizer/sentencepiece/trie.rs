//! A trie of byte strings: one walk finds all strings that a text begins with.

use std::collections::VecDeque;

/// The strings, each with a number.
pub(super) struct Trie {
    /// The nodes in the order of their depth. Children of one node are next to each other. The first node is the root.
    nodes: Vec<Node>,
}

struct Node {
    /// The first child; the others follow it, in the order of their bytes.
    first: u32,
    /// How many children there are.
    n: u16,
    /// The byte that leads here.
    byte: u8,
    /// The number of the string that ends here, or [`NONE`].
    value: u32,
}

const NONE: u32 = u32::MAX;

impl Trie {
    /// Builds it. The strings must be different, and none of them empty.
    pub(super) fn new(mut strings: Vec<(&[u8], u32)>) -> Self {
        strings.sort_unstable();
        let node = |byte| Node { first: 0, n: 0, byte, value: NONE };
        let mut nodes = vec![node(0)];
        // For each node that has no children yet: its strings, and how many bytes of them lead to the node.
        let mut parts = VecDeque::from([(0, strings.len(), 0)]);
        let mut at = 0;
        while let Some((mut start, end, depth)) = parts.pop_front() {
            if let Some(&(string, value)) = strings.get(start).filter(|(string, _)| string.len() == depth) {
                debug_assert!(!string.is_empty());
                nodes[at].value = value;
                start += 1;
            }
            nodes[at].first = nodes.len() as u32;
            for group in strings[start..end].chunk_by(|a, b| a.0[depth] == b.0[depth]) {
                nodes.push(node(group[0].0[depth]));
                parts.push_back((start, start + group.len(), depth + 1));
                start += group.len();
            }
            nodes[at].n = (nodes.len() - nodes[at].first as usize) as u16;
            at += 1;
        }
        nodes.shrink_to_fit();
        Trie { nodes }
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        size_of_val(&self.nodes[..])
    }

    /// The strings that `text` begins with, the shortest first: their lengths and numbers.
    pub(super) fn prefixes<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut node = &self.nodes[0];
        let mut depth = 0;
        std::iter::from_fn(move || {
            loop {
                let children = &self.nodes[node.first as usize..][..usize::from(node.n)];
                let byte = text.get(depth)?;
                node = &children[children.binary_search_by_key(byte, |child| child.byte).ok()?];
                depth += 1;
                if node.value != NONE {
                    return Some((depth, node.value));
                }
            }
        })
    }

    /// Bytes of the longest string that `text` begins with.
    pub(super) fn longest(&self, text: &[u8]) -> Option<usize> {
        self.prefixes(text).last().map(|(len, _)| len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_prefixes_are_found() {
        let strings: [&[u8]; 7] = [b"a", b"ab", b"abc", b"b", b"bcd", b"\xE4\xBD\xA0", b"\xFF"];
        let trie = Trie::new(strings.into_iter().zip(0..).collect());
        for text in [&b"abcd"[..], b"abd", b"bcd", b"bc", b"", b"c", b"\xE4\xBD\xA0\xFF", b"\xFF"] {
            let want: Vec<(usize, u32)> = strings
                .into_iter()
                .zip(0..)
                .filter(|(s, _)| text.starts_with(s))
                .map(|(s, i)| (s.len(), i))
                .collect();
            assert_eq!(trie.prefixes(text).collect::<Vec<_>>(), want, "{text:?}");
            assert_eq!(trie.longest(text), want.last().map(|w| w.0));
        }
        assert_eq!(Trie::new(Vec::new()).longest(b"a"), None);
    }
}
