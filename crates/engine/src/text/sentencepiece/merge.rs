//! SentencePiece's own way of byte pair encoding.
//!
//! Neighbours merge if their text is a piece, the best score first, the leftmost of equals first. That is no
//! list of merges: a piece may come about from any two neighbours, known or not, and equal scores are decided
//! by place. So a merge list derived from the pieces gives other ids for some texts, and none is derived here.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use super::SentencePiece;
use super::symbols::{Symbols, char_len};

/// A stretch of the normalised text that is not split any further.
struct Symbol {
    range: Range<usize>,
    prev: Option<usize>,
    next: Option<usize>,
    /// A user-defined symbol: never merged.
    frozen: bool,
}

/// Two neighbours that would make a piece. Greater is merged sooner; −0 is less than 0, as in the library.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Length of both together, by which a pair is known to be out of date.
    n_bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// The two halves that an unused piece was merged from, by its id.
type Halves = HashMap<u32, [Range<usize>; 2]>;

/// Cuts a normalised text into the ranges of its pieces, in order.
pub(super) fn merge(model: &SentencePiece, text: &[u8], frozen: &Symbols) -> Vec<Range<usize>> {
    let mut symbols = split(text, frozen);
    let mut agenda = BinaryHeap::new();
    let mut halves = Halves::new();
    for right in 1..symbols.len() {
        propose(model, text, &symbols, right - 1, right, &mut agenda, &mut halves);
    }
    while let Some(pair) = agenda.pop() {
        let (left, right) = (pair.left, pair.right);
        let (left_len, right_len) = (symbols[left].range.len(), symbols[right].range.len());
        let outdated = left_len == 0 || right_len == 0 || left_len + right_len != pair.n_bytes;
        if outdated {
            continue;
        }
        let end = symbols[right].range.end;
        symbols[left].range.end = end;
        symbols[right].range.start = end;
        let (prev, next) = (symbols[left].prev, symbols[right].next);
        symbols[left].next = next;
        if let Some(next) = next {
            symbols[next].prev = Some(left);
        }
        if let Some(prev) = prev {
            propose(model, text, &symbols, prev, left, &mut agenda, &mut halves);
        }
        if let Some(next) = next {
            propose(model, text, &symbols, left, next, &mut agenda, &mut halves);
        }
    }

    let mut pieces = Vec::with_capacity(symbols.len());
    for symbol in symbols {
        if !symbol.range.is_empty() {
            undo_unused(model, text, symbol.range, &halves, &mut pieces);
        }
    }
    pieces
}

fn split(text: &[u8], frozen: &Symbols) -> Vec<Symbol> {
    let mut symbols = Vec::with_capacity(text.len());
    let mut start = 0;
    while start < text.len() {
        let matched = frozen.match_at(text, start);
        let len = matched.unwrap_or_else(|| char_len(text[start]).min(text.len() - start));
        let range = start..start + len;
        start = range.end;
        let index = symbols.len();
        let next = (start < text.len()).then_some(index + 1);
        symbols.push(Symbol {
            range,
            prev: index.checked_sub(1),
            next,
            frozen: matched.is_some(),
        });
    }
    symbols
}

fn propose(
    model: &SentencePiece,
    text: &[u8],
    symbols: &[Symbol],
    left: usize,
    right: usize,
    agenda: &mut BinaryHeap<Pair>,
    halves: &mut Halves,
) {
    let (a, b) = (&symbols[left], &symbols[right]);
    if a.frozen || b.frozen {
        return;
    }
    let range = a.range.start..b.range.end;
    let Some(piece) = model.mergeable(&text[range.clone()]) else {
        return;
    };
    if piece.unused {
        halves.insert(piece.id, [a.range.clone(), b.range.clone()]);
    }
    agenda.push(Pair {
        score: piece.score,
        left,
        right,
        n_bytes: range.len(),
    });
}

/// A piece marked unused guides merging but is no token: it falls apart into what it was merged from.
fn undo_unused(
    model: &SentencePiece,
    text: &[u8],
    range: Range<usize>,
    halves: &Halves,
    pieces: &mut Vec<Range<usize>>,
) {
    let mut stack = vec![range];
    while let Some(range) = stack.pop() {
        let piece = model.mergeable(&text[range.clone()]);
        let unused = piece.filter(|piece| piece.unused);
        match unused.and_then(|piece| halves.get(&piece.id)) {
            Some([left, right]) => stack.extend([right.clone(), left.clone()]),
            None => pieces.push(range),
        }
    }
}
