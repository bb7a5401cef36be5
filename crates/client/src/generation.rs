//! A running completion: its events as they arrive, or all of them put together.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use baichuan_proto::v1;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tonic::{Response, Streaming};
use v1::generate_response::Event as Wire;

use crate::error::Error;

/// What happens to a completion.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Admitted; comes once and first.
    PromptInfo(v1::PromptInfo),
    /// A piece of one completion.
    Delta(v1::Delta),
    /// The end of one completion; once per index.
    Finish(v1::Finish),
}

/// A running completion. Dropping it cancels it on the server.
pub struct Generation {
    request_id: String,
    events: BoxStream<'static, Result<Event, Error>>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

impl Generation {
    /// The stream of one call.
    pub(crate) fn of(response: Response<Streaming<v1::GenerateResponse>>) -> Self {
        let id = response.metadata().get("x-request-id");
        let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let events = response.into_inner().map(|message| typed(message?));
        Self::new(id, events.boxed())
    }

    pub(crate) fn new(request_id: String, events: BoxStream<'static, Result<Event, Error>>) -> Self {
        Self { request_id, events }
    }

    /// The request's name, as [`crate::Client::abort`] takes it; from the initial metadata.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The next event; `None` when every completion has finished.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        self.events.next().await.transpose()
    }

    /// Waits for the end and puts the pieces together.
    pub async fn collect(mut self) -> Result<Completion, Error> {
        let mut completion = Completion::default();
        while let Some(event) = self.next().await? {
            completion.push(event);
        }
        Ok(completion)
    }
}

impl Stream for Generation {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(cx)
    }
}

pub(crate) fn typed(message: v1::GenerateResponse) -> Result<Event, Error> {
    match message.event {
        Some(Wire::PromptInfo(info)) => Ok(Event::PromptInfo(info)),
        Some(Wire::Delta(delta)) => Ok(Event::Delta(delta)),
        Some(Wire::Finish(finish)) => Ok(Event::Finish(finish)),
        None => Err(Error::Protocol("a GenerateResponse without an event")),
    }
}

/// All completions of one request, as far as they have come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// Absent until admitted.
    pub info: Option<v1::PromptInfo>,
    /// By index.
    pub choices: Vec<Choice>,
}

/// One completion, as far as it has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// All deltas' text.
    pub text: String,
    /// All deltas' tokens, where asked for.
    pub token_ids: Vec<u32>,
    /// All deltas' log-probabilities, where asked for.
    pub logprobs: Vec<v1::TokenLogprob>,
    /// Absent until finished.
    pub finish: Option<v1::Finish>,
}

impl Completion {
    /// Adds what has happened.
    pub fn push(&mut self, event: Event) {
        match event {
            Event::PromptInfo(info) => self.info = Some(info),
            Event::Delta(delta) => {
                let choice = self.choice(delta.index);
                choice.text.push_str(&delta.text);
                choice.token_ids.extend(delta.token_ids);
                choice.logprobs.extend(delta.logprobs);
            }
            Event::Finish(finish) => {
                let choice = self.choice(finish.index);
                choice.finish = Some(finish);
            }
        }
    }

    fn choice(&mut self, index: u32) -> &mut Choice {
        let index = index as usize;
        if self.choices.len() <= index {
            self.choices.resize_with(index + 1, Choice::default);
        }
        &mut self.choices[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_deltas_come_together_by_index() {
        let mut completion = Completion::default();
        for (index, text) in [(1, "a"), (0, "x"), (1, "b"), (0, "y")] {
            let delta = v1::Delta {
                index,
                text: text.into(),
                token_ids: vec![index],
                ..Default::default()
            };
            completion.push(Event::Delta(delta));
        }
        completion.push(Event::Finish(v1::Finish {
            index: 1,
            ..Default::default()
        }));
        let texts: Vec<_> = completion.choices.iter().map(|c| c.text.as_str()).collect();
        assert_eq!(texts, ["xy", "ab"]);
        assert_eq!(completion.choices[1].token_ids, [1, 1]);
        assert!(completion.choices[0].finish.is_none() && completion.choices[1].finish.is_some());
    }

    #[test]
    fn a_message_without_an_event_is_the_servers_fault() {
        assert!(matches!(
            typed(v1::GenerateResponse { event: None }),
            Err(Error::Protocol(_))
        ));
    }
}
