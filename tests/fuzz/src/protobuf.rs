//! Bytes in place of protobuf messages, in well-formed calls of a running server.
//!
//! The first byte of an input chooses the method, the rest is the message; for methods that take a stream, messages are
//! divided by `0xff 0xff`. So decoding, conversion, checks, text and a few steps of the engine are all behind it.

use std::cell::OnceCell;
use std::cell::RefCell;

use bytes::Bytes;
use libfuzzer_sys::Corpus;
use tonic::Code;

use crate::serving::Server;

const METHODS: [&str; 14] = [
    "/baichuan.v1.InferenceService/Generate",
    "/baichuan.v1.InferenceService/GenerateUnary",
    "/baichuan.v1.InferenceService/Embed",
    "/baichuan.v1.InferenceService/EmbedStream",
    "/baichuan.v1.InferenceService/Tokenize",
    "/baichuan.v1.InferenceService/Detokenize",
    "/baichuan.v1.ModelService/GetModel",
    "/baichuan.v1.ControlService/GetLoad",
    "/baichuan.v1.ControlService/Abort",
    "/vllm.grpc.engine.VllmEngine/Generate",
    "/vllm.grpc.engine.VllmEngine/Embed",
    "/vllm.grpc.engine.VllmEngine/Abort",
    "/vllm.grpc.engine.VllmEngine/GetLoads",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

thread_local! {
    static SERVER: OnceCell<Server> = const { OnceCell::new() };
    static N_INPUTS: RefCell<u64> = const { RefCell::new(0) };
}

pub(crate) fn feed(input: &[u8]) -> Corpus {
    let Some((method, message)) = input.split_first() else {
        return Corpus::Reject;
    };
    let path = METHODS[usize::from(*method) % METHODS.len()];
    let streams = path.contains("Stream") || path.contains("Reflection");
    let messages = match streams {
        true => divided(message),
        false => vec![Bytes::copy_from_slice(message)],
    };
    SERVER.with(|server| {
        let server = server.get_or_init(Server::start);
        let code = server.wait(server.call(path, messages));
        // Whatever a client says is its fault or none.
        assert!(
            !matches!(
                code,
                Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable
            ),
            "{path} answered {code:?}"
        );
        let n = N_INPUTS.with_borrow_mut(|n| {
            *n += 1;
            *n
        });
        if n.is_multiple_of(256) {
            assert!(server.serves(), "others are no longer served");
        }
    });
    Corpus::Keep
}

fn divided(bytes: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(|pair| pair == [0xff, 0xff]) {
        messages.push(Bytes::copy_from_slice(&rest[..at]));
        rest = &rest[at + 2..];
    }
    messages.push(Bytes::copy_from_slice(rest));
    messages
}
