//! Runs a regular expression in linear time, as a deterministic automaton (DFA).
//!
//! An expression of [`super::onig`] is compiled to instructions: characters, looks, and splits in two ways. At load
//! these become a table. A state is the list of places in the instructions that a backtracking engine would still try,
//! in the order in which it would try them. For each state and each kind of next character, the table has the next
//! state, and whether a match ends here. Two characters are of the same kind if every class of the expression has both
//! or neither. So each step of matching is one look-up in the table, whatever the expression is. Expressions whose
//! table would be too large are refused at load.
//!
//! The match is the same as that of a backtracking engine because of the order of the list. The first way that leads to
//! a match is taken, so the places after a match in the list are dropped.

use std::collections::HashMap;
use std::rc::Rc;

use regex_syntax::hir::ClassUnicode;
use tokenizers::Offsets;
use tokenizers::pattern::Pattern;

use super::onig::{self, Look, Node};
use super::watch::{Halt, Watch};
use crate::error::{Error, Result};

/// Most instructions of one expression. Those of published models have less than 500.
const MAX_PROGRAM: usize = 20_000;
/// Most entries of the table. Those of published models have less than 5,000.
const MAX_TABLE: usize = 1 << 18;
/// Most work for making the tables of all expressions of a file: instructions visited plus places kept. Those of
/// published models take less than 2^19.
pub(super) const MAX_BUILD: usize = 1 << 22;
/// Most steps for each byte of a text. There may be more than one, because a search that fails has read characters that
/// the next search reads again. Published expressions need less than ten for each character.
const STEPS_PER_CHAR: usize = 1_000;
/// Steps that every text may take in addition, so that short texts never fail.
const FREE_STEPS: usize = 1 << 22;

/// The state in which no match is possible any more.
const DEAD: u32 = 0;

enum Inst {
    Char(usize),
    Look {
        ahead: bool,
        set: usize,
        at_edge: bool,
    },
    /// Two ways; the first is tried first.
    Split(usize, usize),
    Jump(usize),
    Match,
}

/// An expression that is ready to run.
#[derive(Debug)]
pub(super) struct Regex {
    /// The first character of each interval of one kind, ascending from 0.
    starts: Vec<u32>,
    /// The kind of each interval.
    kinds: Vec<u8>,
    /// The kinds of ASCII characters.
    ascii: [u8; 128],
    /// `(states, kinds + 1)`: twice the next state, plus 1 if a match ends before this character. Column `n_kinds` is
    /// for the end of the text.
    table: Vec<u32>,
    n_kinds: usize,
    /// `(kinds + 1)`: the first state, by the kind of the character before. The last is for the beginning of the text.
    first: Vec<u32>,
    /// Whether it can match the empty string.
    pub(super) nullable: bool,
}

impl Regex {
    /// Compiles an expression in Oniguruma's Ruby syntax.
    pub(super) fn new(pattern: &str) -> Result<Self> {
        Self::within(pattern, &mut { MAX_BUILD })
    }

    /// Compiles an expression, and subtracts the work from `work`, which is what is left of [`MAX_BUILD`].
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
        // One character of each kind, to test which classes have the kind.
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

    /// The end of the match that begins at `start`, if there is one, and the number of characters read.
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

    /// All matches in a text, as the library's search finds them. An empty match directly after another match does not
    /// count.
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

/// Matches that were already found in a text. The library's `Replace` takes them as a pattern. (A pattern cannot stop
/// with a [`Halt`], so the search runs before.)
pub(super) struct Found(pub(super) Vec<Offsets>);

impl Pattern for Found {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        Ok(with_gaps(&self.0, inside.len()))
    }
}

/// Matches and the parts between them, in order; `true` marks a match.
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

/// Divides all characters into intervals that each set has completely or not at all. Returns where the intervals begin,
/// their kinds, and the number of kinds.
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

/// Makes the table by the subset construction: finds all lists of places that can be reached, and the next list for
/// each kind of character.
struct Subsets<'a> {
    program: &'a Program,
    /// `(sets, kinds)` whether a set has the characters of a kind.
    members: &'a [Vec<bool>],
    n_kinds: usize,
    /// Whether the expression looks at the character before a place.
    looks_behind: bool,
    ids: HashMap<State, u32>,
    states: Vec<State>,
    /// The round in which a place was last visited. Places of earlier rounds count as not visited.
    seen: Vec<usize>,
    round: usize,
    /// The work that is left.
    work: &'a mut usize,
}

/// Places in the order in which they are tried, and the kind of the character before (0 if no look needs it).
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

    /// The places after a character of kind `next`, and whether a match ends before that character.
    fn step(
        &mut self,
        places: &[u32],
        before: usize,
        next: usize,
    ) -> std::result::Result<(Vec<u32>, bool), String> {
        self.round += 1;
        let mut after = Vec::new();
        // Visits places depth first. The way that is tried first is on top of the stack.
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
