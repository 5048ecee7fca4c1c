//! Runs a regular expression in linear time.
//!
//! An expression of [`super::onig`] becomes instructions (characters, looks, two ways), and these, at load, a table:
//! a state is the list of places in the instructions that a backtracking engine would still try, in its order,
//! and the table says for each state and kind of next character which state follows and whether a match ends here.
//! Characters are of one kind where every class of the expression has both or neither. A step of matching is one
//! look into the table, whatever the expression is; what would make the table large is refused at load.
//!
//! The order of the list is what makes it the same match: of two ways, the first that leads to a match is taken,
//! so that what comes after a match in the list is dropped.

use std::collections::HashMap;
use std::rc::Rc;

use regex_syntax::hir::ClassUnicode;
use tokenizers::Offsets;
use tokenizers::pattern::Pattern;

use super::onig::{self, Look, Node};
use super::watch::{Halt, Watch};
use crate::error::{Error, Result};

/// Instructions of one expression. Those of published models have less than 500.
const MAX_PROGRAM: usize = 20_000;
/// Entries of the table. Those of published models have less than 5,000.
const MAX_TABLE: usize = 1 << 18;
/// Work of making the tables of a file's expressions, in instructions looked at and places kept. Those of published
/// models take less than 2^19.
pub(super) const MAX_BUILD: usize = 1 << 22;
/// Steps for each character of a text. A search that fails has looked at characters that the next one looks at
/// again; published expressions stay below ten.
const STEPS_PER_CHAR: usize = 1_000;
/// Steps that every text may take, so that short ones never fail.
const FREE_STEPS: usize = 1 << 22;

/// The state from which nothing matches.
const DEAD: u32 = 0;

enum Inst {
    Char(usize),
    Look {
        ahead: bool,
        set: usize,
        at_edge: bool,
    },
    /// The first is tried first.
    Split(usize, usize),
    Jump(usize),
    Match,
}

/// An expression that is ready to run.
#[derive(Debug)]
pub(super) struct Regex {
    /// Where each interval of one kind begins, ascending from 0, and that kind.
    starts: Vec<u32>,
    kinds: Vec<u8>,
    ascii: [u8; 128],
    /// For state and kind, the kind after the last being the end of the text: twice the next state, plus one if a match
    /// ends before this character. // (states, kinds + 1) u32
    table: Vec<u32>,
    n_kinds: usize,
    /// The first state, by the kind of the character before; the last one is for the beginning of the text.
    first: Vec<u32>,
    /// Whether a match can have no characters.
    pub(super) nullable: bool,
}

impl Regex {
    /// Reads an expression in Oniguruma's Ruby syntax.
    pub(super) fn new(pattern: &str) -> Result<Self> {
        Self::within(pattern, &mut { MAX_BUILD })
    }

    /// Reads an expression and takes the work of it from what is left.
    pub(super) fn within(pattern: &str, work: &mut usize) -> Result<Self> {
        Self::build(pattern, work).map_err(|reason| {
            let shown: String = pattern.chars().take(200).collect();
            Error::Tokenizer(format!("regular expression {shown:?}: not supported: {reason}"))
        })
    }

    fn build(pattern: &str, work: &mut usize) -> std::result::Result<Self, String> {
        let mut program = Program::default();
        let node = onig::parse(pattern)?;
        program.emit(&node)?;
        program.insts.push(Inst::Match);
        let (starts, kinds, n_kinds) = partition(&program.sets)?;
        let kind = |c: u32| kinds[starts.partition_point(|&start| start <= c) - 1];
        let mut ascii = [0; 128];
        for (c, slot) in (0..).zip(&mut ascii) {
            *slot = kind(c);
        }
        // A character of each kind, to ask the classes with.
        let mut of_kind = vec![None; n_kinds];
        for (&start, &kind) in starts.iter().zip(&kinds) {
            of_kind[usize::from(kind)].get_or_insert(start);
        }
        let member = |set: usize, kind: usize| of_kind[kind].is_some_and(|c| has(&program.sets[set], c));
        let members: Vec<Vec<bool>> =
            (0..program.sets.len()).map(|set| (0..n_kinds).map(|kind| member(set, kind)).collect()).collect();
        let (table, first) = Subsets::new(&program, &members, n_kinds, work).determine()?;
        Ok(Regex { starts, kinds, ascii, table, n_kinds, first, nullable: node.nullable() })
    }

    fn kind(&self, c: char) -> usize {
        let c = u32::from(c);
        usize::from(match self.ascii.get(c as usize) {
            Some(&kind) => kind,
            None => self.kinds[self.starts.partition_point(|&start| start <= c) - 1],
        })
    }

    /// The end of the match that begins at `start`, and the characters looked at.
    fn match_at(&self, text: &str, start: usize) -> (Option<usize>, usize) {
        let before = text[..start].chars().next_back().map_or(self.n_kinds, |c| self.kind(c));
        let (mut state, mut end, mut steps) = (self.first[before], None, 1);
        let width = self.n_kinds + 1;
        for (at, c) in text[start..].char_indices() {
            let entry = self.table[state as usize * width + self.kind(c)];
            if entry & 1 == 1 {
                end = Some(start + at);
            }
            state = entry >> 1;
            if state == DEAD {
                return (end, steps);
            }
            steps += 1;
        }
        if self.table[state as usize * width + self.n_kinds] & 1 == 1 {
            end = Some(text.len());
        }
        (end, steps)
    }

    /// The matches of a text, one after the other, as the library's search finds them: an empty one directly after a
    /// match is none.
    pub(super) fn find_all(
        &self,
        text: &str,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<Vec<Offsets>, Halt> {
        let mut matches = Vec::new();
        let (mut from, mut last_end, mut steps) = (0, None, 0);
        let most = FREE_STEPS + STEPS_PER_CHAR * text.len();
        'search: loop {
            let mut start = from;
            let end = loop {
                let (end, looked_at) = self.match_at(text, start);
                watch.work(looked_at)?;
                steps += looked_at;
                if steps > most {
                    let reason =
                        format!("a regular expression takes more than {most} steps for {} bytes", text.len());
                    return Err(Error::Tokenizer(reason).into());
                }
                if let Some(end) = end {
                    break end;
                }
                match text[start..].chars().next() {
                    Some(c) => start += c.len_utf8(),
                    None => break 'search,
                }
            };
            if start == end && last_end == Some(end) {
                match text[from..].chars().next() {
                    Some(c) => from += c.len_utf8(),
                    None => break,
                }
                continue;
            }
            matches.push((start, end));
            (from, last_end) = (end, Some(end));
        }
        Ok(matches)
    }
}

/// Matches that were found in a text already, for the library's `Replace`, which knows no [`Halt`].
pub(super) struct Found(pub(super) Vec<Offsets>);

impl Pattern for Found {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        Ok(with_gaps(&self.0, inside.len()))
    }
}

/// Matches and what lies between them, in order.
pub(super) fn with_gaps(matches: &[Offsets], len: usize) -> Vec<(Offsets, bool)> {
    let mut parts = Vec::with_capacity(2 * matches.len() + 1);
    let mut from = 0;
    for &(start, end) in matches {
        if from != start {
            parts.push(((from, start), false));
        }
        parts.push(((start, end), true));
        from = end;
    }
    if from != len {
        parts.push(((from, len), false));
    }
    parts
}

pub(super) fn has(set: &ClassUnicode, c: u32) -> bool {
    let ranges = set.ranges();
    let at = ranges.partition_point(|r| u32::from(r.end()) < c);
    ranges.get(at).is_some_and(|r| u32::from(r.start()) <= c)
}

/// The intervals of characters that every set has or lacks as one, and their kinds: where they begin, which kind they
/// are, and how many kinds there are.
fn partition(sets: &[ClassUnicode]) -> std::result::Result<(Vec<u32>, Vec<u8>, usize), String> {
    let mut starts = vec![0];
    for range in sets.iter().flat_map(|set| set.ranges()) {
        starts.extend([u32::from(range.start()), u32::from(range.end()) + 1]);
    }
    starts.sort_unstable();
    starts.dedup();
    let mut known: HashMap<Vec<bool>, u8> = HashMap::new();
    let mut kinds = Vec::with_capacity(starts.len());
    for &start in &starts {
        let signature: Vec<bool> = sets.iter().map(|set| has(set, start)).collect();
        let kind = match known.get(&signature) {
            Some(&kind) => kind,
            None => {
                let next = u8::try_from(known.len()).map_err(|_| "more than 256 kinds of characters")?;
                known.insert(signature, next);
                next
            }
        };
        kinds.push(kind);
    }
    Ok((starts, kinds, known.len()))
}

#[derive(Default)]
struct Program {
    insts: Vec<Inst>,
    sets: Vec<ClassUnicode>,
}

impl Program {
    fn push(&mut self, inst: Inst) -> std::result::Result<usize, String> {
        if self.insts.len() >= MAX_PROGRAM {
            return Err(format!("more than {MAX_PROGRAM} instructions"));
        }
        self.insts.push(inst);
        Ok(self.insts.len() - 1)
    }

    fn set(&mut self, set: &ClassUnicode) -> std::result::Result<usize, String> {
        if let Some(known) = self.sets.iter().position(|other| other == set) {
            return Ok(known);
        }
        if self.sets.len() == 64 {
            return Err("more than 64 different classes".into());
        }
        self.sets.push(set.clone());
        Ok(self.sets.len() - 1)
    }

    fn emit(&mut self, node: &Node) -> std::result::Result<(), String> {
        match node {
            Node::Set(set) => {
                let set = self.set(set)?;
                self.push(Inst::Char(set))?;
            }
            Node::Look(Look { ahead, set, at_edge }) => {
                let set = self.set(set)?;
                self.push(Inst::Look { ahead: *ahead, set, at_edge: *at_edge })?;
            }
            Node::Concat(nodes) => nodes.iter().try_for_each(|node| self.emit(node))?,
            Node::Alt(nodes) => {
                let mut ends = Vec::new();
                for (i, node) in nodes.iter().enumerate() {
                    if i + 1 == nodes.len() {
                        self.emit(node)?;
                        break;
                    }
                    let split = self.push(Inst::Split(0, 0))?;
                    self.emit(node)?;
                    ends.push(self.push(Inst::Jump(0))?);
                    self.insts[split] = Inst::Split(split + 1, self.insts.len());
                }
                for end in ends {
                    self.insts[end] = Inst::Jump(self.insts.len());
                }
            }
            Node::Repeat { node, min, max, greedy } => {
                let two_ways = |on, out| if *greedy { Inst::Split(on, out) } else { Inst::Split(out, on) };
                for _ in 0..*min {
                    self.emit(node)?;
                }
                match max {
                    None => {
                        let split = self.push(Inst::Split(0, 0))?;
                        self.emit(node)?;
                        self.push(Inst::Jump(split))?;
                        self.insts[split] = two_ways(split + 1, self.insts.len());
                    }
                    Some(max) => {
                        let mut splits = Vec::new();
                        for _ in *min..*max {
                            splits.push(self.push(Inst::Split(0, 0))?);
                            self.emit(node)?;
                        }
                        for split in splits {
                            self.insts[split] = two_ways(split + 1, self.insts.len());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Makes the table: every list of places that can be reached, and what follows from it.
struct Subsets<'a> {
    program: &'a Program,
    /// Whether a set has the characters of a kind. // (sets, kinds)
    members: &'a [Vec<bool>],
    n_kinds: usize,
    /// Whether it matters which character came before.
    looks_behind: bool,
    ids: HashMap<State, u32>,
    states: Vec<State>,
    /// When a place was last put on a list; a mark of an older round counts as none.
    seen: Vec<usize>,
    round: usize,
    /// What is left of it.
    work: &'a mut usize,
}

/// Places in the order in which they are tried, and the kind of the character before.
type State = (Rc<[u32]>, usize);

impl<'a> Subsets<'a> {
    fn new(program: &'a Program, members: &'a [Vec<bool>], n_kinds: usize, work: &'a mut usize) -> Self {
        let looks_behind = program.insts.iter().any(|i| matches!(i, Inst::Look { ahead: false, .. }));
        let seen = vec![0; program.insts.len()];
        let dead: State = (Rc::from([]), 0);
        let (ids, states) = (HashMap::from([(dead.clone(), DEAD)]), vec![dead]);
        Subsets { program, members, n_kinds, looks_behind, ids, states, seen, round: 0, work }
    }

    fn works(&mut self, units: usize) -> std::result::Result<(), String> {
        *self.work = self.work.checked_sub(units).ok_or("too many ways to match")?;
        Ok(())
    }

    fn id(&mut self, places: Vec<u32>, before: usize) -> std::result::Result<u32, String> {
        if places.is_empty() {
            return Ok(DEAD);
        }
        let state: State = (places.into(), if self.looks_behind { before } else { 0 });
        if let Some(&id) = self.ids.get(&state) {
            return Ok(id);
        }
        self.works(state.0.len())?;
        if (self.states.len() + 1) * (self.n_kinds + 1) > MAX_TABLE {
            return Err("too many ways to match".into());
        }
        let id = self.states.len() as u32;
        self.ids.insert(state.clone(), id);
        self.states.push(state);
        Ok(id)
    }

    fn determine(mut self) -> std::result::Result<(Vec<u32>, Vec<u32>), String> {
        let first = (0..=self.n_kinds)
            .map(|before| self.id(vec![0], before))
            .collect::<std::result::Result<_, _>>()?;
        let mut table = Vec::new();
        let mut done = 0;
        while done < self.states.len() {
            let (places, before) = self.states[done].clone();
            done += 1;
            for next in 0..=self.n_kinds {
                let (places, matched) = self.step(&places, before, next)?;
                let id = self.id(places, next)?;
                table.push(2 * id + u32::from(matched));
            }
        }
        Ok((table, first))
    }

    /// The places after a character of the kind `next`, and whether a match ends before it.
    fn step(
        &mut self,
        places: &[u32],
        before: usize,
        next: usize,
    ) -> std::result::Result<(Vec<u32>, bool), String> {
        self.round += 1;
        let mut after = Vec::new();
        // Depth first, the way that is tried first on top.
        let mut stack: Vec<usize> = places.iter().rev().map(|&place| place as usize).collect();
        while let Some(place) = stack.pop() {
            if self.seen[place] == self.round {
                continue;
            }
            self.seen[place] = self.round;
            self.works(1)?;
            match self.program.insts[place] {
                Inst::Char(set) => {
                    if next < self.n_kinds && self.members[set][next] {
                        after.push(place as u32 + 1); // below MAX_PROGRAM
                    }
                }
                Inst::Look { ahead, set, at_edge } => {
                    let kind = if ahead { next } else { before };
                    let holds = if kind == self.n_kinds { at_edge } else { self.members[set][kind] };
                    if holds {
                        stack.push(place + 1);
                    }
                }
                Inst::Split(one, other) => stack.extend([other, one]),
                Inst::Jump(to) => stack.push(to),
                Inst::Match => return Ok((after, true)),
            }
        }
        Ok((after, false))
    }
}

#[cfg(test)]
mod tests;
