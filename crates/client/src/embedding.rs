//! Embeddings as they come back: streams of them, and their numbers whatever the encoding.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use baichuan_proto::v1;
use futures::Stream;
use tonic::{Code, Streaming};
use v1::embed_stream_response::Result as Wire;

use crate::error::Error;

/// The answer to one input of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// The caller's number for the input.
    pub index: u32,
    /// The vector, or why this input has none; the stream goes on either way.
    pub result: Result<v1::Embedding, EmbedFailure>,
    /// Tokens the input took.
    pub usage: Option<v1::Usage>,
}

/// Why one input of a stream has no vector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct EmbedFailure {
    /// The gRPC status code a call for this input alone would have ended with.
    pub code: Code,
    /// For people.
    pub message: String,
    /// For programs, e.g. `QUEUE_FULL`; may be empty.
    pub reason: String,
    /// When trying again makes sense; absent when it does not.
    pub retry_delay: Option<Duration>,
}

/// Answers in the order they are ready. Dropping it cancels what is not answered.
#[derive(Debug)]
pub struct EmbedStream {
    answers: Streaming<v1::EmbedStreamResponse>,
}

impl EmbedStream {
    pub(crate) fn new(answers: Streaming<v1::EmbedStreamResponse>) -> Self {
        Self { answers }
    }

    /// The next answer; `None` when the inputs have ended and all are answered.
    pub async fn next(&mut self) -> Result<Option<Embedded>, Error> {
        match self.answers.message().await? {
            Some(message) => typed(message).map(Some),
            None => Ok(None),
        }
    }
}

impl Stream for EmbedStream {
    type Item = Result<Embedded, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(Pin::new(&mut self.answers).poll_next(cx));
        Poll::Ready(item.map(|message| typed(message?)))
    }
}

fn typed(message: v1::EmbedStreamResponse) -> Result<Embedded, Error> {
    let result = match message.result {
        Some(Wire::Embedding(embedding)) => Ok(embedding),
        Some(Wire::Error(error)) => Err(EmbedFailure {
            code: Code::from_i32(error.code),
            message: error.message,
            reason: error.reason,
            retry_delay: error.retry_delay_ms.map(Duration::from_millis),
        }),
        None => return Err(Error::Protocol("an EmbedStreamResponse without a result")),
    };
    Ok(Embedded {
        index: message.index,
        result,
        usage: message.usage,
    })
}

/// The numbers of an embedding, whatever encoding was asked for.
///
/// One vector of `dimensions`; without pooling, the tokens' vectors one after another. Fails when `data` does
/// not hold whole elements of its `dtype`.
pub fn values(embedding: &v1::Embedding) -> Result<Vec<f32>, Error> {
    if embedding.data.is_empty() {
        return Ok(embedding.values.clone());
    }
    let dtype = v1::EmbeddingDtype::try_from(embedding.dtype)
        .map_err(|_| Error::Protocol("an Embedding of unknown dtype"))?;
    let data = &embedding.data[..];
    let (width, element): (usize, fn(&[u8]) -> f32) = match dtype {
        v1::EmbeddingDtype::F32 => (4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        v1::EmbeddingDtype::F16 => (2, |b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
        v1::EmbeddingDtype::Bf16 => (2, |b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
    };
    if !data.len().is_multiple_of(width) {
        return Err(Error::Protocol("an Embedding whose data ends within an element"));
    }
    Ok(data.chunks_exact(width).map(element).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(dtype: v1::EmbeddingDtype, data: Vec<u8>) -> v1::Embedding {
        v1::Embedding {
            data: data.into(),
            dtype: dtype.into(),
            ..Default::default()
        }
    }

    #[test]
    fn every_encoding_gives_the_same_numbers() {
        let numbers = [1.0f32, -2.5, 0.0];
        let f32s = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16s = numbers
            .iter()
            .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
            .collect();
        let bf16s = numbers
            .iter()
            .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
            .collect();
        for embedding in [
            v1::Embedding {
                values: numbers.into(),
                ..Default::default()
            },
            bytes(v1::EmbeddingDtype::F32, f32s),
            bytes(v1::EmbeddingDtype::F16, f16s),
            bytes(v1::EmbeddingDtype::Bf16, bf16s),
        ] {
            assert_eq!(values(&embedding).unwrap(), numbers, "{embedding:?}");
        }
    }

    #[test]
    fn half_an_element_is_the_servers_fault() {
        let embedding = bytes(v1::EmbeddingDtype::F32, vec![0; 6]);
        assert!(matches!(values(&embedding), Err(Error::Protocol(_))));
    }

    #[test]
    fn one_failed_input_keeps_its_code_and_delay() {
        let error = v1::EmbedError {
            code: 8,
            reason: "QUEUE_FULL".into(),
            retry_delay_ms: Some(20),
            ..Default::default()
        };
        let message = v1::EmbedStreamResponse {
            index: 7,
            result: Some(Wire::Error(error)),
            ..Default::default()
        };
        let answer = typed(message).unwrap();
        let failure = answer.result.unwrap_err();
        assert_eq!((answer.index, failure.code), (7, Code::ResourceExhausted));
        assert_eq!(failure.retry_delay, Some(Duration::from_millis(20)));
    }
}
