//! What a stream has told, kept for who takes it up again: its last messages, within a bound of bytes.

use std::collections::VecDeque;

use baichuan_proto::v1;
use prost::Message;
use v1::generate_response::Event;

use crate::error::{ApiError, NotResumable};

/// What a kept message costs besides its own bytes.
const OVERHEAD_BYTES: usize = size_of::<Kept>() + 16;

/// Messages in the order in which they were told, numbered from 0.
#[derive(Debug)]
pub(super) struct Tape {
    kept: VecDeque<Kept>,
    /// Number of the first one kept.
    first: u64,
    bytes: usize,
    limit: usize,
    /// Told so far.
    tokens: u64,
    /// Least number of tokens from which the stream can be gone on with.
    oldest: u64,
    /// Told up to the last message let go, where that was a delta.
    gone: Option<u64>,
}

#[derive(Debug)]
struct Kept {
    /// Encoded: then its size is what it takes.
    message: Vec<u8>,
    /// Told up to and with this message.
    tokens: u64,
    is_delta: bool,
}

/// There is no room beside what has not been read yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Tape {
    /// An empty one that holds `limit` bytes, or one message if that is larger.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            first: 0,
            bytes: 0,
            limit,
            tokens: 0,
            oldest: 0,
            gone: None,
        }
    }

    /// Adds a message; of the oldest, those before number `unread` make room for it.
    pub(super) fn push(&mut self, event: Event, unread: u64) -> Result<(), Full> {
        let tokens = match &event {
            Event::Delta(delta) => Some(delta.tokens_so_far),
            Event::PromptInfo(_) | Event::Finish(_) => None,
        };
        let message = v1::GenerateResponse { event: Some(event) }.encode_to_vec();
        let size = message.len() + OVERHEAD_BYTES;
        while self.bytes + size > self.limit && self.first < unread {
            self.forget_first();
        }
        // A first message may be long, that of a prompt's log-probabilities: it and one behind it always find room.
        if self.bytes + size > self.limit && self.kept.len() > 1 {
            return Err(Full);
        }
        self.bytes += size;
        self.tokens = tokens.unwrap_or(self.tokens);
        self.kept.push_back(Kept {
            message,
            tokens: self.tokens,
            is_delta: tokens.is_some(),
        });
        Ok(())
    }

    /// The message with this number; none while it has not been told.
    pub(super) fn get(&self, number: u64) -> Option<Result<v1::GenerateResponse, ApiError>> {
        let kept = self.kept.get(self.index(number)?)?;
        let message = v1::GenerateResponse::decode(kept.message.as_slice());
        Some(message.map_err(|error| ApiError::Internal {
            cause: format!("a kept message cannot be read: {error}"),
        }))
    }

    /// Number of the message that follows the last one.
    pub(super) fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }

    /// Number of the message that who has `token` tokens wants next.
    pub(super) fn find(&self, token: u64) -> Result<u64, ApiError> {
        if token > self.tokens {
            return Err(ApiError::NotResumable(NotResumable::Ahead {
                asked: token,
                told: self.tokens,
            }));
        }
        if token < self.oldest {
            return Err(ApiError::NotResumable(NotResumable::Forgotten {
                asked: token,
                oldest: self.oldest,
            }));
        }
        if token == 0 || self.gone == Some(token) {
            return Ok(self.first);
        }
        let at = self.kept.partition_point(|kept| kept.tokens < token);
        match self.kept.get(at) {
            Some(kept) if kept.tokens == token && kept.is_delta => Ok(self.first + at as u64 + 1),
            Some(kept) => {
                let message = format!(
                    "message borders only: the next one is {}, got {token}",
                    kept.tokens
                );
                Err(ApiError::invalid("resume_from_token", message))
            }
            None => Ok(self.end()),
        }
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    fn forget_first(&mut self) {
        let Some(kept) = self.kept.pop_front() else { return };
        self.first += 1;
        self.bytes -= kept.message.len() + OVERHEAD_BYTES;
        // What told no token cannot be asked for again by who has that many tokens.
        (self.oldest, self.gone) = match kept.is_delta {
            true => (kept.tokens, Some(kept.tokens)),
            false => (kept.tokens + 1, None),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(tokens_so_far: u64) -> Event {
        Event::Delta(v1::Delta {
            text: "x".repeat(100),
            tokens_so_far,
            ..Default::default()
        })
    }

    fn info() -> Event {
        Event::PromptInfo(v1::PromptInfo::default())
    }

    fn finish() -> Event {
        Event::Finish(v1::Finish::default())
    }

    /// A tape of these, each read at once.
    fn tape(limit: usize, events: impl IntoIterator<Item = Event>) -> Tape {
        let mut tape = Tape::new(limit);
        for event in events {
            tape.push(event, tape.end()).unwrap();
        }
        tape
    }

    fn told(tape: &Tape, token: u64) -> Vec<Event> {
        let from = tape.find(token).unwrap();
        (from..tape.end())
            .map(|number| tape.get(number).unwrap().unwrap().event.unwrap())
            .collect()
    }

    #[test]
    fn who_has_so_many_tokens_gets_what_follows_them() {
        let tape = tape(
            usize::MAX,
            [info(), delta(1), delta(4), finish(), delta(5), finish()],
        );
        assert_eq!(
            told(&tape, 0),
            [info(), delta(1), delta(4), finish(), delta(5), finish()]
        );
        assert_eq!(told(&tape, 1), [delta(4), finish(), delta(5), finish()]);
        // The end of one completion may have been lost with the connection: it is told again.
        assert_eq!(told(&tape, 4), [finish(), delta(5), finish()]);
        assert_eq!(told(&tape, 5), [finish()]);
        assert!(tape.get(tape.end()).is_none());
    }

    #[test]
    fn a_number_inside_a_message_or_ahead_of_the_stream_is_refused() {
        let tape = tape(usize::MAX, [info(), delta(1), delta(4)]);
        let inside = tape.find(2).unwrap_err().to_string();
        assert!(
            inside.contains("resume_from_token") && inside.contains("is 4, got 2"),
            "{inside}"
        );
        assert!(matches!(
            tape.find(5),
            Err(ApiError::NotResumable(NotResumable::Ahead { asked: 5, told: 4 }))
        ));
    }

    #[test]
    fn the_oldest_that_was_read_makes_room_and_is_named_when_asked_for() {
        let two = 2 * (110 + OVERHEAD_BYTES);
        let mut tape = tape(two, [info(), delta(2), delta(4), delta(6)]);
        assert_eq!(tape.kept.len(), 2, "{tape:?}");
        for token in [0, 1] {
            assert!(matches!(
                tape.find(token),
                Err(ApiError::NotResumable(NotResumable::Forgotten { oldest: 2, .. }))
            ));
        }
        assert_eq!(told(&tape, 2), [delta(4), delta(6)]);
        tape.find(3).unwrap_err();
        // The end of a completion is let go: who has 6 tokens may have missed it.
        for event in [finish(), delta(8), delta(10)] {
            tape.push(event, tape.end()).unwrap();
        }
        assert!(matches!(
            tape.find(6),
            Err(ApiError::NotResumable(NotResumable::Forgotten { oldest: 7, .. }))
        ));
        assert_eq!(told(&tape, 8), [delta(10)]);
    }

    #[test]
    fn what_nobody_has_read_is_kept_until_there_is_no_room() {
        let mut tape = Tape::new(3 * (110 + OVERHEAD_BYTES));
        for tokens in 1..=3 {
            tape.push(delta(tokens), 0).unwrap();
        }
        assert_eq!(tape.push(delta(4), 0), Err(Full));
        assert_eq!(told(&tape, 0).len(), 3);
        tape.push(delta(4), 1).unwrap();
        assert_eq!(told(&tape, 1).len(), 3);
    }

    #[test]
    fn a_message_longer_than_the_bound_is_taken_alone() {
        let mut tape = Tape::new(1);
        tape.push(delta(1), 0).unwrap();
        tape.push(delta(2), 0).unwrap();
        assert_eq!(tape.push(delta(3), 0), Err(Full));
        tape.push(delta(3), 2).unwrap();
        assert_eq!(told(&tape, 2), [delta(3)]);
    }
}
