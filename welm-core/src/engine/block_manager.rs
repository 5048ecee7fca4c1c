//! Which sequences hold which blocks of the KV cache, and which blocks the prefix cache can use again.
//!
//! A full block is identified by its sixteen tokens *and* all tokens before them. It gets a number that was never used
//! before, its `uid`. The index maps `(uid of the block before it, its sixteen tokens)` to the block. Keys are compared
//! by their tokens, so a hit is exact, and a collision of hashes does no harm. The first block has the [`CacheRoot`] of
//! the request in the place of a uid, so requests with different roots share no block. Roots are stored only in the
//! keys of first blocks.
//!
//! A block that no sequence holds stays in the index until its memory is needed. Then the block that was unused for
//! longest is taken first. Of the blocks of one sequence, the last is taken first, because a block is of no use without
//! those before it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::batch::BLOCK_TOKENS;

/// What decides, beside the tokens, whether requests may share blocks: they do if all fields are equal. Anything else
/// that keys and values depend on, such as an adapter of the weights, will be another field here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct CacheRoot {
    /// The salt of the request: it keeps one tenant's blocks apart from those of others.
    salt: Option<Arc<str>>,
}

impl CacheRoot {
    pub(crate) fn of_salt(salt: Option<&str>) -> Self {
        CacheRoot { salt: salt.map(Arc::from) }
    }
}

/// What comes before a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Parent {
    /// No block: it is the first one of requests with this root.
    Root(CacheRoot),
    /// The block with this uid.
    Block(u64),
}

type Key = (Parent, [u32; BLOCK_TOKENS]);

#[derive(Default)]
struct Block {
    /// How many sequences hold it.
    refs: u32,
    /// Its uid and its key in the index, if it is in the index.
    entry: Option<(u64, Key)>,
    /// Its key in `BlockManager::idle`, if it is there.
    idle_since: u64,
}

/// The blocks of one cache.
pub(crate) struct BlockManager {
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Blocks in the index that no sequence holds, the longest unused first.
    idle: BTreeMap<u64, u32>,
    index: HashMap<Key, (u64, u32)>, // uid, block
    clock: u64,
    next_uid: u64,
    prefix_cache: bool,
    /// Whether blocks with generated tokens are also shared.
    pub(crate) share_generated: bool,
}

impl BlockManager {
    /// A manager of `n_blocks` free blocks. With `prefix_cache` it keeps full blocks for later requests.
    pub(crate) fn new(n_blocks: usize, prefix_cache: bool) -> Self {
        BlockManager {
            blocks: (0..n_blocks).map(|_| Block::default()).collect(),
            free: (0..n_blocks as u32).rev().collect(),
            idle: BTreeMap::new(),
            index: HashMap::new(),
            clock: 0,
            next_uid: 0,
            prefix_cache,
            share_generated: true,
        }
    }

    /// Number of all blocks.
    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Number of blocks that `allocate` can give.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Number of blocks that no sequence holds, but that the prefix cache may hit.
    pub(crate) fn cached(&self) -> usize {
        self.idle.len()
    }

    /// A block with undefined content, held once. If no block is free, it is the idle block that was unused for
    /// longest, which leaves the index. `None` if sequences hold all blocks.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.idle.pop_first()?;
                if let Some((_, key)) = self.blocks[block as usize].entry.take() {
                    self.index.remove(&key);
                }
                block
            }
        };
        self.blocks[block as usize].refs = 1;
        Some(block)
    }

    /// Notes one more holder of a block.
    pub(crate) fn retain(&mut self, block: u32) {
        let b = &mut self.blocks[block as usize];
        if b.refs == 0 {
            self.idle.remove(&b.idle_since);
        }
        b.refs += 1;
    }

    /// Notes one holder less for each block, and empties the list, which is in the order of the sequence.
    pub(crate) fn release(&mut self, blocks: &mut Vec<u32>) {
        for block in blocks.drain(..).rev() {
            let b = &mut self.blocks[block as usize];
            debug_assert!(b.refs > 0, "block {block} is released more often than held");
            b.refs -= 1;
            if b.refs > 0 {
                continue;
            }
            if b.entry.is_some() {
                self.clock += 1;
                b.idle_since = self.clock;
                self.idle.insert(self.clock, block);
            } else {
                self.free.push(block);
            }
        }
    }

    /// Removes blocks from the index, so that later requests do not find them; not those that other sequences hold,
    /// too.
    pub(crate) fn forget(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let b = &mut self.blocks[block as usize];
            if b.refs <= 1
                && let Some((_, key)) = b.entry.take()
            {
                self.index.remove(&key);
            }
        }
    }

    /// Whether a block has only one holder. If so, the holder may write into it, and it leaves the index.
    pub(crate) fn make_own(&mut self, block: u32) -> bool {
        let own = self.blocks[block as usize].refs == 1;
        if own {
            self.forget(&[block]);
        }
        own
    }

    /// The blocks in the index that hold the longest beginning of `tokens` after `root`, and their uids. Each is
    /// retained.
    pub(crate) fn lookup(&mut self, root: Parent, tokens: &[u32]) -> (Vec<u32>, Vec<u64>) {
        let (mut found, mut uids) = (Vec::new(), Vec::new());
        let mut key = (root, [0; BLOCK_TOKENS]);
        for chunk in tokens.chunks_exact(BLOCK_TOKENS) {
            key.1.copy_from_slice(chunk);
            let Some(&(uid, block)) = self.index.get(&key) else { break };
            self.retain(block);
            found.push(block);
            uids.push(uid);
            key.0 = Parent::Block(uid);
        }
        (found, uids)
    }

    /// Adds a full block, which was computed, to the index. Returns its uid; `None` without a prefix cache.
    pub(crate) fn register(&mut self, parent: Parent, tokens: &[u32], block: u32) -> Option<u64> {
        if !self.prefix_cache {
            return None;
        }
        let key = (parent, tokens.try_into().expect("a key has one block's tokens"));
        if let Some(&(uid, _)) = self.index.get(&key) {
            return Some(uid); // two sequences computed it at the same time; the first stays in the index
        }
        let uid = self.next_uid;
        self.next_uid += 1;
        self.blocks[block as usize].entry = Some((uid, key.clone()));
        self.index.insert(key, (uid, block));
        Some(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: usize, from: u32) -> Vec<u32> {
        (from..from + n as u32).collect()
    }

    fn root(salt: Option<&str>) -> Parent {
        Parent::Root(CacheRoot::of_salt(salt))
    }

    /// Allocates and registers the full blocks of `t`.
    fn fill(m: &mut BlockManager, t: &[u32]) -> Vec<u32> {
        let (mut held, uids) = m.lookup(root(None), t);
        let mut parent = uids.last().map_or(root(None), |&uid| Parent::Block(uid));
        for chunk in t.chunks_exact(BLOCK_TOKENS).skip(held.len()) {
            let block = m.allocate().unwrap();
            if let Some(uid) = m.register(parent.clone(), chunk, block) {
                parent = Parent::Block(uid);
            }
            held.push(block);
        }
        held
    }

    #[test]
    fn equal_beginnings_share_blocks_and_others_do_not() {
        let mut m = BlockManager::new(8, true);
        let mut a = fill(&mut m, &tokens(48, 0));
        let mut longer = tokens(32, 0);
        longer.extend(tokens(16, 100));
        let mut b = fill(&mut m, &longer);
        assert_eq!(a[..2], b[..2]);
        assert_ne!(a[2], b[2]);
        assert_eq!(m.available(), 4);
        // The same sixteen tokens after another beginning are another block.
        assert!(m.lookup(root(None), &tokens(16, 16)).0.is_empty());
        m.release(&mut a);
        m.release(&mut b);
        assert_eq!((m.available(), m.cached()), (8, 4));
    }

    #[test]
    fn the_longest_unused_goes_first_and_a_sequence_loses_its_tail_first() {
        let mut m = BlockManager::new(4, true);
        let mut a = fill(&mut m, &tokens(32, 0));
        let mut b = fill(&mut m, &tokens(32, 500));
        m.release(&mut a);
        m.release(&mut b);
        let mut held = vec![m.allocate().unwrap()];
        let (mut hit, _) = m.lookup(root(None), &tokens(32, 0));
        assert_eq!(hit.len(), 1, "the tail of the older sequence was forgotten, its head was not");
        let (mut other, _) = m.lookup(root(None), &tokens(32, 500));
        assert_eq!(other.len(), 2);
        assert!(m.allocate().is_none(), "all four are held");
        m.release(&mut hit);
        m.release(&mut other);
        m.release(&mut held);
        assert_eq!(m.available(), 4);
    }

    #[test]
    fn only_equal_salts_share_and_none_outlives_its_blocks() {
        let mut m = BlockManager::new(8, true);
        let salts = [None, Some("a"), Some("b")];
        for (at, salt) in salts.iter().enumerate() {
            let (found, _) = m.lookup(root(*salt), &tokens(32, 0));
            assert!(found.is_empty(), "{salt:?} hits what another has computed");
            let mut blocks = [m.allocate().unwrap(), m.allocate().unwrap()].to_vec();
            let uid = m.register(root(*salt), &tokens(16, 0), blocks[0]).unwrap();
            m.register(Parent::Block(uid), &tokens(16, 16), blocks[1]);
            m.release(&mut blocks);
            assert_eq!(m.cached(), 2 * (at + 1));
        }
        for salt in salts {
            let (mut found, _) = m.lookup(root(salt), &tokens(32, 0));
            assert_eq!(found.len(), 2, "{salt:?}");
            m.release(&mut found);
        }
        // A thousand salts later the index is no larger than the cache.
        for salt in 0..1_000 {
            let mut block = vec![m.allocate().unwrap()];
            m.register(root(Some(&salt.to_string())), &tokens(16, 0), block[0]);
            m.release(&mut block);
        }
        assert!(m.index.len() <= m.total());
    }

    #[test]
    fn without_prefix_caching_nothing_is_kept() {
        let mut m = BlockManager::new(3, false);
        let mut a = fill(&mut m, &tokens(48, 0));
        m.release(&mut a);
        assert!(m.lookup(root(None), &tokens(48, 0)).0.is_empty());
        assert_eq!((m.available(), m.cached()), (3, 0));
    }

    #[test]
    fn random_use_never_loses_or_doubles_a_block() {
        let mut m = BlockManager::new(20, true);
        let mut held: Vec<Vec<u32>> = Vec::new();
        let mut state = 1u32;
        for _ in 0..5_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pick = (state >> 16) as usize;
            if pick.is_multiple_of(3) && !held.is_empty() {
                let at = pick % held.len();
                m.release(&mut held.swap_remove(at));
            } else if m.available() >= 3 {
                held.push(fill(&mut m, &tokens(48, (pick % 7) as u32 * 16)));
            }
            let mut distinct: Vec<u32> = held.iter().flatten().copied().collect();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len() + m.available(), m.total());
        }
    }
}
