//! Recordings of steps. The ones that were used last are kept.

use std::collections::VecDeque;

/// How many recordings are kept.
const MOST: usize = 64;

/// What a recording is for: the number of rows, and how many keys each may attend to.
pub(super) type Key = (usize, usize);

/// The rows of the recording that serves a step of `n` rows; at most `most`. There are few different numbers, so that
/// soon every step has its recording. Products for few rows compute 8 or 16 at a time, so the additional rows cost
/// them nothing.
pub(super) fn rounded_rows(n: usize, most: usize) -> usize {
    let rounded = if n <= 8 { n.next_power_of_two() } else { n.next_multiple_of(8) };
    rounded.min(most)
}

/// Recordings of type `T`, the last used first.
pub(super) struct Graphs<T> {
    kept: VecDeque<(Key, T)>,
}

impl<T> Graphs<T> {
    pub(super) fn new() -> Self {
        Graphs { kept: VecDeque::with_capacity(MOST) }
    }

    /// The recording, if it is kept. It becomes the one that was used last.
    pub(super) fn get(&mut self, key: Key) -> Option<&T> {
        let at = self.kept.iter().position(|(known, _)| *known == key)?;
        let found = self.kept.remove(at)?;
        self.kept.push_front(found);
        self.kept.front().map(|(_, graph)| graph)
    }

    /// Keeps a recording and returns it. If there are too many, the one whose last use is longest ago is dropped.
    pub(super) fn insert(&mut self, key: Key, graph: T) -> &T {
        self.kept.truncate(MOST - 1);
        self.kept.push_front((key, graph));
        &self.kept[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_to_few() {
        let rounded: Vec<_> = (1..=64).map(|n| rounded_rows(n, 64)).collect();
        assert!((1..=64).all(|n| rounded[n - 1] >= n));
        let mut different = rounded;
        different.dedup();
        assert_eq!(different, [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]);
        assert_eq!([3, 5, 6].map(|n| rounded_rows(n, 6)), [4, 6, 6]);
    }

    #[test]
    fn what_was_used_last_is_kept() {
        let mut graphs = Graphs::new();
        for i in 0..MOST {
            assert_eq!(*graphs.insert((i, 512), i), i);
        }
        // The first is used again, so that the second goes.
        assert_eq!(graphs.get((0, 512)), Some(&0));
        graphs.insert((0, 1024), MOST);
        assert_eq!(graphs.kept.len(), MOST);
        assert_eq!(graphs.get((1, 512)), None);
        for (key, is) in [((0, 512), 0), ((2, 512), 2), ((0, 1024), MOST)] {
            assert_eq!(graphs.get(key), Some(&is));
        }
    }
}
