//! Requests for vectors, and vectors as they are carried.

use baichuan_engine::request::Pooling;
use baichuan_engine::text::EncodeOptions;
use baichuan_engine::{BackendInfo, RequestId, TokenId};
use baichuan_proto::v1;
use half::{bf16, f16};

use super::prompt::{self, Prompt};
use super::{Findings, check_time_limit, clamp};
use crate::grpc::meta::check_request_id;

/// Of one [`v1::Embedding`] in a message, all but its vectors' elements: tag and length of either, four numbers, a truth.
const MAX_FIELDS_BYTES: usize = 2 * (1 + 5) + 4 * (1 + 5) + 2;
/// Of a response, all but its embeddings and names: usage, times, how vectors were made.
const MAX_NUMBERS_BYTES: usize = 256;

/// Most bytes of a response without its embeddings.
pub(in crate::grpc) fn max_rest_bytes(id: &RequestId, info: &BackendInfo) -> usize {
    MAX_NUMBERS_BYTES + id.as_str().len() + info.name.len() + info.fingerprint.len()
}

/// How vectors are made and carried: complete and checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::grpc) struct Options {
    pub(in crate::grpc) pooling: Pooling,
    pub(in crate::grpc) normalize: bool,
    /// Of one vector.
    pub(in crate::grpc) dimensions: usize,
    /// Of the model's vectors.
    hidden_size: usize,
    /// Keep only so many first tokens of an input.
    pub(in crate::grpc) truncate: Option<usize>,
    encoding: v1::EmbeddingEncoding,
    dtype: v1::EmbeddingDtype,
    pub(in crate::grpc) priority: i32,
}

/// Checks everything of a request but its inputs.
pub(in crate::grpc) fn check_options(
    request: &v1::EmbedRequest,
    info: &BackendInfo,
    findings: &mut Findings,
) -> Options {
    check_request_id("request_id", &request.request_id, &mut findings.0);
    check_time_limit(request.time_limit_ms, findings);
    findings.that(request.truncate_tokens != Some(0), "truncate_tokens", || {
        "must be at least 1, got 0".into()
    });
    let hidden_size = info.hidden_size;
    let dimensions = request.dimensions.map_or(hidden_size, |d| d as usize);
    findings.that((1..=hidden_size).contains(&dimensions), "dimensions", || {
        format!("must be between 1 and {hidden_size}, got {dimensions}")
    });
    let pooling = match v1::Pooling::try_from(request.pooling) {
        Ok(v1::Pooling::ModelDefault) => info.default_pooling,
        Ok(v1::Pooling::Last) => Pooling::Last,
        Ok(v1::Pooling::Mean) => Pooling::Mean,
        Ok(v1::Pooling::WeightedMean) => Pooling::WeightedMean,
        Ok(v1::Pooling::First) => Pooling::First,
        Ok(v1::Pooling::None) => Pooling::None,
        Err(_) => {
            unknown("pooling", request.pooling, findings);
            info.default_pooling
        }
    };
    let encoding = v1::EmbeddingEncoding::try_from(request.encoding).unwrap_or_else(|_| {
        unknown("encoding", request.encoding, findings);
        v1::EmbeddingEncoding::Float
    });
    let dtype = v1::EmbeddingDtype::try_from(request.dtype).unwrap_or_else(|_| {
        unknown("dtype", request.dtype, findings);
        v1::EmbeddingDtype::F32
    });
    let floats_as_f32 = encoding == v1::EmbeddingEncoding::Bytes || dtype == v1::EmbeddingDtype::F32;
    findings.that(floats_as_f32, "dtype", || {
        "must be F32 for the FLOAT encoding; other types need BYTES".into()
    });
    Options {
        pooling,
        normalize: request.normalize.unwrap_or(true),
        dimensions,
        hidden_size,
        truncate: request.truncate_tokens.map(|n| n as usize),
        encoding,
        dtype,
        priority: request.priority.unwrap_or(0),
    }
}

fn unknown(field: &str, value: i32, findings: &mut Findings) {
    findings.that(false, field, || format!("has no value numbered {value}"));
}

/// Checks one input; `at` is the path to it, e.g. `inputs[3]`.
pub(in crate::grpc) fn check_input(
    input: Option<v1::EmbedInput>,
    at: &str,
    info: &BackendInfo,
    findings: &mut Findings,
) -> Option<Prompt> {
    use v1::embed_input::Input;
    match input.and_then(|i| i.input) {
        None => {
            findings.that(false, at, || "one of text and token_ids must be set".into());
            None
        }
        Some(Input::Text(text)) => Some(prompt::of_text(
            text,
            &format!("{at}."),
            EncodeOptions::UNTRUSTED,
            info,
            findings,
        )),
        Some(Input::TokenIds(ids)) => Some(prompt::of_ids(
            ids.ids,
            &format!("{at}.token_ids.ids"),
            info,
            findings,
        )),
    }
}

/// Token ids of one input, cut to length where that was asked for.
pub(in crate::grpc) struct Input {
    pub(in crate::grpc) tokens: Vec<TokenId>,
    pub(in crate::grpc) truncated: bool,
}

impl Options {
    /// Cuts an input to the length asked for.
    pub(in crate::grpc) fn cut(&self, mut tokens: Vec<TokenId>) -> Input {
        let truncated = self.truncate.is_some_and(|max| tokens.len() > max);
        if let Some(max) = self.truncate {
            tokens.truncate(max);
        }
        Input { tokens, truncated }
    }

    /// Most bytes that the message with the vectors of such an input takes in another one.
    pub(in crate::grpc) fn n_bytes(&self, input: &Input) -> usize {
        let vectors = if self.pooling == Pooling::None {
            input.tokens.len()
        } else {
            1
        };
        vectors * self.dimensions * self.element_bytes() + MAX_FIELDS_BYTES
    }

    fn element_bytes(&self) -> usize {
        match self.dtype {
            v1::EmbeddingDtype::F32 => 4,
            v1::EmbeddingDtype::F16 | v1::EmbeddingDtype::Bf16 => 2,
        }
    }

    /// The message for an input's vectors, `values` being whole vectors of the model one after another: cut to the
    /// dimensions, then normalised, then encoded.
    pub(in crate::grpc) fn encode(
        &self,
        index: u32,
        values: &[f32],
        n_tokens: usize,
        truncated: bool,
    ) -> v1::Embedding {
        let mut cut = Vec::with_capacity(values.len() / self.hidden_size.max(1) * self.dimensions);
        for vector in values.chunks_exact(self.hidden_size.max(1)) {
            let start = cut.len();
            cut.extend_from_slice(&vector[..self.dimensions]);
            if self.normalize {
                normalize(&mut cut[start..]);
            }
        }
        let mut embedding = v1::Embedding {
            index,
            dimensions: clamp(self.dimensions),
            dtype: self.dtype.into(),
            tokens: clamp(n_tokens),
            truncated,
            ..v1::Embedding::default()
        };
        match self.encoding {
            v1::EmbeddingEncoding::Float => embedding.values = cut,
            v1::EmbeddingEncoding::Bytes => {
                embedding.data = match self.dtype {
                    v1::EmbeddingDtype::F32 => cut.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    v1::EmbeddingDtype::F16 => {
                        cut.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
                    }
                    v1::EmbeddingDtype::Bf16 => cut
                        .iter()
                        .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                        .collect(),
                }
            }
        }
        embedding
    }
}

/// Scales a vector to length 1; one of zeros stays. Summed in f64: hidden states have large outliers.
fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector
            .iter_mut()
            .for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
}

#[cfg(test)]
mod tests;
