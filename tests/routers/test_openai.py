"""The OpenAI client through SMG: every answer is the one that the own interface gives."""

import json
import os
import pathlib
import re

import openai
import pytest
from baichuan.v1 import inference_pb2, sampling_pb2

from fleet import MODEL, Gateway, Worker

QUESTION = "What is appendicitis?"
PROMPT = "appendicitis: "
# Cold enough to make sense, warm enough that seeds differ.
WARM = 1.5


def chat(client, **options):
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}], **options)


def text(client, prompt=PROMPT, **options):
    return client.completions.create(model=MODEL, prompt=prompt, **options)


def own(worker, sampling=None, output=None, stop=(), max_tokens=24, **prompt):
    """The same by the own interface."""
    request = inference_pb2.GenerateRequest(
        sampling=sampling_pb2.SamplingParams(**(sampling or {"temperature": 0})),
        stopping=sampling_pb2.StoppingParams(max_tokens=max_tokens, stop=stop),
        output=sampling_pb2.OutputOptions(**(output or {})),
        **prompt,
    )
    return worker.inference.GenerateUnary(inference_pb2.GenerateUnaryRequest(request=request), timeout=60)


def own_chat(worker, **options):
    message = inference_pb2.ChatMessage(role="user", content=QUESTION)
    return own(worker, chat=inference_pb2.Chat(messages=[message]), **options)


def test_a_chat_is_the_own_interfaces(client, workers):
    answer, wanted = chat(client, max_tokens=24, temperature=0), own_chat(workers[0])
    [choice] = answer.choices
    assert choice.message.content == wanted.choices[0].text == "inflammation of the vermiform appendix"
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens == wanted.usage.prompt_tokens
    assert answer.usage.completion_tokens == wanted.usage.completion_tokens


def test_a_text_is_the_own_interfaces(client, workers):
    answer, wanted = text(client, max_tokens=5, temperature=0), own(workers[0], text=PROMPT, max_tokens=5)
    assert answer.choices[0].text == wanted.choices[0].text != ""
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (wanted.usage.prompt_tokens, 5)


def test_several_prompts_are_several_answers(client, workers):
    prompts = [PROMPT, "hepatitis: "]
    answers = text(client, prompt=prompts, max_tokens=6, temperature=0).choices
    wanted = [own(workers[0], text=prompt, max_tokens=6).choices[0].text for prompt in prompts]
    assert [answer.text for answer in answers] == wanted


def test_streams_are_the_same_in_pieces(client, workers):
    options = {"include_usage": True}
    pieces = list(chat(client, max_tokens=24, temperature=0, stream=True, stream_options=options))
    said = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    wanted = own_chat(workers[0])
    assert "".join(said) == wanted.choices[0].text
    assert len([piece for piece in said if piece]) > 3
    assert pieces[-1].usage.completion_tokens == wanted.usage.completion_tokens
    pieces = text(client, max_tokens=5, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == own(workers[0], text=PROMPT, max_tokens=5).choices[0].text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(client, workers, stream):
    wanted = own_chat(workers[0], stop=["vermiform"]).choices[0]
    answer = chat(client, max_tokens=24, temperature=0, stop=["vermiform"], stream=stream)
    if stream:
        pieces = [piece.choices[0] for piece in answer if piece.choices]
        said, reason = "".join(piece.delta.content or "" for piece in pieces), pieces[-1].finish_reason
    else:
        said, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (said, reason) == (wanted.text, "stop")
    assert "vermi" not in said


def test_a_seed_gives_the_own_interfaces_answer_from_either_worker(client, workers):
    by_seed = {}
    for seed in (7, 8):
        sampling = {"temperature": WARM, "seed": seed}
        [wanted] = {own_chat(worker, sampling=sampling, max_tokens=12).choices[0].text for worker in workers}
        # Taking turns: each worker is asked.
        answers = {chat(client, max_tokens=12, **sampling).choices[0].message.content for _ in range(4)}
        assert answers == {wanted}
        by_seed[seed] = wanted
        wanted = own(workers[0], text=PROMPT, sampling=sampling, max_tokens=12).choices[0].text
        assert text(client, max_tokens=12, **sampling).choices[0].text == wanted
    assert by_seed[7] != by_seed[8]


def test_n_answers_are_the_own_interfaces_n(client, workers):
    sampling = {"temperature": WARM, "seed": 7, "n": 3}
    answers = chat(client, max_tokens=12, **sampling).choices
    wanted = own_chat(workers[0], sampling=sampling, max_tokens=12).choices
    assert [answer.message.content for answer in answers] == [choice.text for choice in wanted]
    assert len({answer.message.content for answer in answers}) == 3


def test_logprobs_are_the_own_interfaces(client, workers):
    answer = chat(client, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    wanted = own_chat(workers[0], output={"logprobs": 3}, max_tokens=4).choices[0].logprobs
    assert [place.logprob for place in answer] == pytest.approx([place.logprob for place in wanted])
    for place, own_place in zip(answer, wanted, strict=True):
        assert [top.logprob for top in place.top_logprobs] == pytest.approx([top.logprob for top in own_place.top])


SCHEMA = {
    "type": "object",
    "properties": {"organ": {"enum": ["heart", "lung"]}, "certain": {"type": "boolean"}},
    "required": ["organ", "certain"],
    "additionalProperties": False,
}


def test_a_schema_is_kept_to_as_by_the_own_interface(client, workers):
    wish = {"type": "json_schema", "json_schema": {"name": "finding", "schema": SCHEMA}}
    answer = chat(client, max_tokens=64, temperature=0, response_format=wish).choices[0]
    found = json.loads(answer.message.content)
    assert set(found) == {"organ", "certain"} and found["organ"] in ("heart", "lung") and isinstance(found["certain"], bool)
    assert answer.finish_reason == "stop"
    wanted = own_chat(workers[0], structured_output=sampling_pb2.StructuredOutput(json_schema=json.dumps(SCHEMA)), max_tokens=64)
    assert answer.message.content == wanted.choices[0].text


def test_a_json_object_is_one(client):
    answer = chat(client, max_tokens=200, temperature=0, response_format={"type": "json_object"}).choices[0]
    assert answer.message.content.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)


def test_an_expression_is_kept_to_as_by_the_own_interface(client, workers):
    answer = text(client, max_tokens=24, temperature=0, extra_body={"regex": "(yes|no), [a-z]{3,8}"}).choices[0]
    assert re.fullmatch("(yes|no), [a-z]{3,8}", answer.text)
    constraint = sampling_pb2.StructuredOutput(regex="(yes|no), [a-z]{3,8}")
    assert answer.text == own(workers[0], text=PROMPT, structured_output=constraint).choices[0].text


def test_a_bad_expression_is_blamed_on_its_field(client):
    with pytest.raises(openai.BadRequestError) as refused:
        text(client, max_tokens=4, extra_body={"regex": "(unclosed"})
    assert "sampling_params.regex" in str(refused.value)


def test_a_vector_is_the_own_interfaces(client, workers):
    answer = client.embeddings.create(model=MODEL, input="heart", encoding_format="float")
    request = inference_pb2.EmbedRequest(inputs=[inference_pb2.EmbedInput(text="heart")])
    [wanted] = workers[0].inference.Embed(request).embeddings
    assert answer.data[0].embedding == pytest.approx(list(wanted.values), abs=1e-6)
    assert answer.usage.prompt_tokens == wanted.tokens


def test_several_inputs_of_one_embedding_are_joined_by_smg(client):
    """Not what OpenAI's interface says, and docs/SCALING.md warns of it: when this fails, SMG has mended it."""
    several = client.embeddings.create(model=MODEL, input=["heart", "lung"], encoding_format="float")
    joined = client.embeddings.create(model=MODEL, input="heart lung", encoding_format="float")
    assert [one.embedding for one in several.data] == [one.embedding for one in joined.data]


def test_the_model_is_listed_once(client):
    assert [model.id for model in client.models.list()] == [MODEL]


def test_logprobs_of_texts_are_left_out_by_smg(client):
    """When this fails, SMG passes them on, and docs/SCALING.md is to say so."""
    assert text(client, max_tokens=2, temperature=0, logprobs=2).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_tokens": 0}, openai.BadRequestError, "sampling_params.max_tokens: must be at least 1, got 0"),
        ({"prompt": "word " * 3000, "max_tokens": 1}, openai.BadRequestError, "maximum context length is 2048 tokens"),
    ],
    ids=["max_tokens", "prompt"],
)
def test_what_is_wrong_is_said(client, options, error, said):
    with pytest.raises(error) as refused:
        text(client, **options)
    assert said in str(refused.value)


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="x", max_tokens=1)


@pytest.fixture(scope="module")
def apart():
    """SMG where the checkpoint is not to be seen: the folder's name means another one to each process."""
    with Worker(checkpoint="/proc/self/cwd") as worker, Gateway([worker]) as smg:
        yield worker, smg.client()


def test_a_router_on_another_machine_takes_the_tokenizer_from_the_worker(apart):
    worker, client = apart
    assert chat(client, max_tokens=24, temperature=0).choices[0].message.content == own_chat(worker).choices[0].text
    assert worker.value("grpc_server_handled_total", grpc_method="GetTokenizer", grpc_code="OK") >= 1


@pytest.fixture(scope="module")
def sentencepiece_alone(tmp_path_factory):
    """A checkpoint as many are published, without the tokenizer.json that SMG wants."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for file in pathlib.Path(os.environ["BAICHUAN_CHECKPOINT"]).resolve().iterdir():
        if file.is_file() and file.name != "tokenizer.json":
            (folder / file.name).symlink_to(file)
    with Worker(checkpoint=folder) as worker, Gateway([worker]) as smg:
        yield worker, smg.client()


def test_a_checkpoint_with_sentencepiece_alone_is_served_all_the_same(sentencepiece_alone):
    worker, client = sentencepiece_alone
    assert chat(client, max_tokens=24, temperature=0).choices[0].message.content == own_chat(worker).choices[0].text
