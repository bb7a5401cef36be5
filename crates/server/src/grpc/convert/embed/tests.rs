//! From messages to embedding requests and back.

use prost::Message;

use super::*;

const HIDDEN: usize = 4;

fn options() -> Options {
    Options {
        pooling: Pooling::Last,
        normalize: false,
        dimensions: HIDDEN,
        hidden_size: HIDDEN,
        truncate: None,
        encoding: v1::EmbeddingEncoding::Float,
        dtype: v1::EmbeddingDtype::F32,
        priority: 0,
    }
}

#[test]
fn dimensions_are_cut_before_the_length_becomes_one() {
    let options = Options {
        normalize: true,
        dimensions: 2,
        ..options()
    };
    let embedding = options.encode(7, &[3.0, 4.0, 100.0, 100.0], 5, true);
    assert_eq!(embedding.values, [0.6, 0.8]);
    let described = (
        embedding.index,
        embedding.dimensions,
        embedding.tokens,
        embedding.truncated,
    );
    assert_eq!(described, (7, 2, 5, true));
}

#[test]
fn vectors_of_tokens_are_each_cut_and_normalised() {
    let options = Options {
        normalize: true,
        dimensions: 1,
        ..options()
    };
    let embedding = options.encode(0, &[3.0, 4.0, 0.0, 0.0, -2.0, 1.0, 1.0, 1.0], 2, false);
    assert_eq!(embedding.values, [1.0, -1.0]);
}

#[test]
fn a_vector_of_zeros_stays_one() {
    let options = Options {
        normalize: true,
        ..options()
    };
    assert_eq!(options.encode(0, &[0.0; HIDDEN], 1, false).values, [0.0; HIDDEN]);
}

#[test]
fn bytes_are_little_endian_of_the_type_asked_for() {
    let values = [1.0, -2.0, 0.5, 65504.0];
    let encode = |dtype| {
        let options = Options {
            encoding: v1::EmbeddingEncoding::Bytes,
            dtype,
            ..options()
        };
        let embedding = options.encode(0, &values, 1, false);
        assert_eq!((embedding.values.len(), embedding.dtype()), (0, dtype));
        embedding.data
    };
    assert_eq!(
        encode(v1::EmbeddingDtype::F32)[..8],
        [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]
    );
    assert_eq!(
        encode(v1::EmbeddingDtype::F16)[..],
        [0, 0x3c, 0, 0xc0, 0, 0x38, 0xff, 0x7b]
    );
    assert_eq!(
        encode(v1::EmbeddingDtype::Bf16)[..6],
        [0x80, 0x3f, 0, 0xc0, 0, 0x3f]
    );
}

#[test]
fn an_answers_size_counts_every_vector() {
    let input = Input {
        tokens: vec![1; 10],
        truncated: false,
    };
    let every_token = Options {
        pooling: Pooling::None,
        dtype: v1::EmbeddingDtype::F16,
        ..options()
    };
    for (options, vectors) in [(options(), 1), (every_token, 10)] {
        let bytes = Options {
            encoding: v1::EmbeddingEncoding::Bytes,
            ..options
        };
        let embedding = bytes.encode(
            u32::MAX,
            &[1.0; 10 * HIDDEN][..vectors * HIDDEN],
            usize::MAX,
            true,
        );
        assert_eq!(embedding.data.len(), vectors * HIDDEN * options.element_bytes());
        let response = v1::EmbedResponse {
            embeddings: vec![embedding],
            ..Default::default()
        };
        let (least, most) = (response.encoded_len(), options.n_bytes(&input));
        assert!(least <= most && most < least + 32, "{least} {most}");
    }
}
