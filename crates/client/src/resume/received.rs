//! What has been received of a stream: what comes twice is left out, and must be what came before.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::error::Error;
use crate::generation::Event;

/// What has been received, over all connections and servers.
#[derive(Debug, Default)]
pub(super) struct Received {
    has_info: bool,
    /// Digests of each completion's deltas.
    deltas: BTreeMap<u32, Vec<u64>>,
    /// How many of them the present stream has told.
    told: BTreeMap<u32, usize>,
    finished: BTreeSet<u32>,
    /// Tokens that the present stream has told.
    pub(super) tokens: u64,
}

impl Received {
    /// The stream begins anew, maybe on another server.
    pub(super) fn begin_again(&mut self) {
        self.told.clear();
        self.tokens = 0;
    }

    /// Notes what has come; whether it had not come before.
    ///
    /// # Errors
    /// The request, made again, yields something else than before.
    pub(super) fn is_news(&mut self, event: &Event) -> Result<bool, Error> {
        match event {
            Event::PromptInfo(_) => Ok(!std::mem::replace(&mut self.has_info, true)),
            Event::Finish(finish) => Ok(self.finished.insert(finish.index)),
            Event::Delta(delta) => {
                self.tokens = delta.tokens_so_far;
                let mut hasher = DefaultHasher::new();
                (&delta.text, &delta.token_ids).hash(&mut hasher);
                let digest = hasher.finish();
                let deltas = self.deltas.entry(delta.index).or_default();
                let told = self.told.entry(delta.index).or_default();
                *told += 1;
                match deltas.get(*told - 1) {
                    None => {
                        deltas.push(digest);
                        Ok(true)
                    }
                    Some(before) if *before == digest => Ok(false),
                    Some(_) => Err(Error::Protocol(
                        "the request, made again, yields another completion than before",
                    )),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use baichuan_proto::v1;

    use super::*;

    fn delta(index: u32, text: &str, tokens_so_far: u64) -> Event {
        Event::Delta(v1::Delta {
            index,
            text: text.into(),
            tokens_so_far,
            ..Default::default()
        })
    }

    fn finish(index: u32) -> Event {
        Event::Finish(v1::Finish {
            index,
            ..Default::default()
        })
    }

    #[test]
    fn a_stream_begun_again_yields_only_what_had_not_come() {
        let mut received = Received::default();
        for event in [delta(0, "a", 1), delta(1, "x", 2), delta(0, "b", 3), finish(0)] {
            assert!(received.is_news(&event).unwrap());
        }
        // Taken up where it was: an end may be told twice, a delta is not.
        assert!(!received.is_news(&finish(0)).unwrap());
        assert!(received.is_news(&delta(1, "y", 4)).unwrap());
        received.begin_again();
        // Completions may take turns in another order.
        for event in [
            delta(1, "x", 1),
            delta(1, "y", 2),
            delta(0, "a", 3),
            delta(0, "b", 4),
            finish(0),
        ] {
            assert!(!received.is_news(&event).unwrap(), "{event:?}");
        }
        assert!(received.is_news(&delta(1, "z", 5)).unwrap());
        assert_eq!(received.tokens, 5);
    }

    #[test]
    fn another_completion_than_before_is_an_error() {
        let mut received = Received::default();
        received.is_news(&delta(0, "a", 1)).unwrap();
        received.begin_again();
        assert!(matches!(
            received.is_news(&delta(0, "b", 1)),
            Err(Error::Protocol(_))
        ));
    }
}
