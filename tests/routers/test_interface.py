"""The routers' interface as SMG publishes it against the one in /proto, and its published client against the server."""

import hashlib
import io
import os
import pathlib
import subprocess
import zipfile

import grpc
import pytest
from google.protobuf import descriptor_pb2
from smg_grpc_proto import vllm_engine_pb2 as published
from smg_grpc_proto import vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2 as published_common

from fleet import Worker

GENERATED = pathlib.Path(__file__).resolve().parents[2] / "crates/proto/src/generated/routers.bin"
# Nothing in them is read: a request that has one is refused.
OPAQUE = {"MultimodalInputs", "MediaRefs"}
# Newer than what SMG 1.13 calls, and for a profiler that this server has not.
WITHOUT = {"StartProfile", "StopProfile"}


def parsed(module):
    return descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


def ours():
    files = descriptor_pb2.FileDescriptorSet.FromString(GENERATED.read_bytes()).file
    return {file.package: file for file in files}


def fields(message):
    """Number, type and shape of every field by its name."""
    oneofs = [oneof.name for oneof in message.oneof_decl]
    return {
        field.name: (
            field.number, field.type, field.label, field.type_name, field.proto3_optional,
            oneofs[field.oneof_index] if field.HasField("oneof_index") and not field.proto3_optional else None,
        )
        for field in message.field
    }


def reserved(message):
    return {number for span in message.reserved_range for number in range(span.start, span.end)}


@pytest.mark.parametrize("theirs", [parsed(published), parsed(published_common)], ids=lambda file: file.package)
def test_every_field_has_the_published_number_and_type(theirs):
    known = {message.name: message for message in theirs.message_type}
    own = [message for message in ours()[theirs.package].message_type if message.name not in OPAQUE]
    assert own
    for message in own:
        published_fields = fields(known[message.name])
        for name, field in fields(message).items():
            assert published_fields[name] == field, f"{message.name}.{name}"


def test_no_field_of_a_request_is_unknown_here():
    requests = {"GenerateRequest", "SamplingParams", "TokenizedInput", "ChoiceConstraint", "KvTransferParams", "EmbedRequest",
                "AbortRequest", "GetLoadsRequest", "GetModelInfoRequest", "GetServerInfoRequest", "HealthCheckRequest"}
    own = {message.name: message for message in ours()["vllm.grpc.engine"].message_type}
    for message in parsed(published).message_type:
        if message.name in requests:
            requests.remove(message.name)
            assert fields(message).keys() == fields(own[message.name]).keys(), message.name
    assert not requests


def test_what_is_not_filled_of_a_response_is_reserved_by_number():
    own = {message.name: message for message in ours()["vllm.grpc.engine"].message_type}
    for message in parsed(published).message_type:
        if message.name in own and message.name not in OPAQUE:
            left_out = fields(message).keys() - fields(own[message.name]).keys()
            numbers = {fields(message)[name][0] for name in left_out}
            assert numbers == reserved(own[message.name]), message.name


def test_every_method_is_there_with_its_messages():
    [own] = ours()["vllm.grpc.engine"].service
    [theirs] = parsed(published).service
    assert own.name == theirs.name
    signature = {m.name: (m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in own.method}
    for method in theirs.method:
        if method.name not in WITHOUT:
            wanted = (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            assert signature.pop(method.name) == wanted, method.name
    assert not signature


@pytest.fixture
def stub(workers):
    """The published client of the first worker."""
    with grpc.insecure_channel(workers[0].url.removeprefix("grpc://")) as channel:
        yield vllm_engine_pb2_grpc.VllmEngineStub(channel)


def test_the_published_client_is_answered(stub, workers):
    request = published.GenerateRequest(
        request_id="published-1",
        tokenized=published.TokenizedInput(input_ids=[468, 1439, 3906]),
        sampling_params=published.SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2, prompt_logprobs=1),
        stream=True,
    )
    messages = list(stub.Generate(request, timeout=30))
    chunks = [message.chunk for message in messages if message.HasField("chunk")]
    assert [list(chunk.output_logprobs.token_ids) for chunk in chunks] == [list(chunk.token_ids) for chunk in chunks]
    assert list(chunks[0].input_logprobs.token_ids) == [468, 1439, 3906]
    assert not chunks[0].input_logprobs.token_logprobs[0].HasField("value")
    assert messages[-1].complete.finish_reason == "length" and messages[-1].complete.completion_tokens == 5
    assert stub.HealthCheck(published.HealthCheckRequest()).healthy
    assert stub.GetModelInfo(published.GetModelInfoRequest()).served_model_name == "m1"
    assert stub.GetLoads(published.GetLoadsRequest(include=["core"])).loads[0].max_total_num_tokens > 0


def test_the_tokenizer_arrives_whole(stub):
    chunks = list(stub.GetTokenizer(published_common.GetTokenizerRequest()))
    archive = b"".join(chunk.data for chunk in chunks)
    assert chunks[-1].sha256 == hashlib.sha256(archive).hexdigest()
    names = set(zipfile.ZipFile(io.BytesIO(archive)).namelist())
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= names
    assert not any(name.endswith(".safetensors") for name in names)


@pytest.mark.parametrize(
    "field",
    [
        {"mm_inputs": published.MultimodalInputs(mm_hashes=["a"])},
        {"media_refs": published.MediaRefs(items=[published.MediaRef(url="file:///x")])},
        {"extra_mm_inputs": [published.MultimodalInputs()]},
        {"kv_transfer_params": published.KvTransferParams(remote_host="x", remote_port=1)},
        {"kv_transfer_params_json": "{}"},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_this_server_lacks_is_refused_by_name(stub, field):
    request = published.GenerateRequest(tokenized=published.TokenizedInput(input_ids=[1]), **field)
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Generate(request, timeout=30))
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert refused.value.details().startswith(f"{next(iter(field))}:")


def test_a_guarded_worker_serves_the_facade_to_who_has_a_token_and_tells_its_health_to_all(tmp_path):
    token = "a-token-for-this-test-alone-0123456789"
    env = {name: value for name, value in os.environ.items() if not name.startswith("BAICHUAN_")}
    command = [os.environ["BAICHUAN_SERVER_BINARY"], "hash-token", "--name", "router", "--tenant", "clinic"]
    hashed = subprocess.run(command, input=token + "\n", check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(hashed, encoding="utf-8")
    settings = (f"auth.tokens={tokens}", "tenants.clinic.weight=1")
    request = published.GenerateRequest(
        tokenized=published.TokenizedInput(input_ids=[468, 1439]), sampling_params=published.SamplingParams(max_tokens=2)
    )
    with Worker(*settings) as worker, grpc.insecure_channel(worker.url.removeprefix("grpc://")) as channel:
        stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        assert stub.HealthCheck(published.HealthCheckRequest()).healthy
        for refused_call in (
            lambda: list(stub.Generate(request, timeout=30)),
            lambda: stub.Abort(published.AbortRequest(request_ids=["x"]), timeout=30),
            lambda: stub.GetModelInfo(published.GetModelInfoRequest(), timeout=30),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                refused_call()
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        metadata = [("authorization", f"Bearer {token}")]
        assert list(stub.Generate(request, timeout=30, metadata=metadata))[-1].complete.prompt_tokens == 2
