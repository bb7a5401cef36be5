"""InferenceService and ModelService, as a Python application calls them."""

import array
import unittest

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from baichuan.v1 import inference_pb2, model_pb2, sampling_pb2
from server import Server

GREEDY = sampling_pb2.SamplingParams(temperature=0)


def generate_request(text="The patient has a headache", max_tokens=8, **fields):
    return inference_pb2.GenerateRequest(
        text=text,
        sampling=fields.pop("sampling", GREEDY),
        stopping=sampling_pb2.StoppingParams(max_tokens=max_tokens, ignore_eos=True),
        output=sampling_pb2.OutputOptions(return_token_ids=True, logprobs=2),
        **fields,
    )


class InferenceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server())
        cls.inference = cls.server.inference

    def test_a_stream_says_what_it_does_and_ends_with_its_reason(self):
        call = self.inference.Generate(generate_request(request_id="from-python"))
        events = list(call)
        self.assertEqual(dict(call.initial_metadata())["x-request-id"], "from-python")
        info, finish = events[0].prompt_info, events[-1].finish
        self.assertEqual(info.request_id, "from-python")
        self.assertGreater(info.prompt_tokens, 0)
        deltas = [event.delta for event in events[1:-1]]
        self.assertEqual(sum(len(delta.token_ids) for delta in deltas), 8)
        for delta in deltas:
            for token in delta.logprobs:
                self.assertLessEqual(token.logprob, 0)
                self.assertEqual(len(token.top), 2)
        self.assertEqual(finish.finish_reason, sampling_pb2.FINISH_REASON_LENGTH)
        self.assertEqual(finish.usage.completion_tokens, 8)
        self.assertEqual(finish.usage.total_tokens, finish.usage.prompt_tokens + 8)
        self.assertTrue(finish.system_fingerprint)

    def test_one_answer_equals_the_stream(self):
        stream = [event.delta for event in self.inference.Generate(generate_request())]
        unary = self.inference.GenerateUnary(inference_pb2.GenerateUnaryRequest(request=generate_request()))
        [choice] = unary.choices
        self.assertEqual(choice.text, "".join(delta.text for delta in stream))
        self.assertEqual(list(choice.token_ids), [i for delta in stream for i in delta.token_ids])

    def test_a_seed_makes_samples_reproducible(self):
        def sample(seed):
            sampling = sampling_pb2.SamplingParams(temperature=1.5, top_p=1, top_k=0, seed=seed)
            request = generate_request(sampling=sampling, max_tokens=16)
            answer = self.inference.GenerateUnary(inference_pb2.GenerateUnaryRequest(request=request))
            return list(answer.choices[0].token_ids)

        self.assertEqual(sample(7), sample(7))
        self.assertNotEqual(sample(7), sample(8))

    def test_a_chat_is_rendered_by_the_template(self):
        chat = inference_pb2.Chat(messages=[inference_pb2.ChatMessage(role="user", content="hello")])
        rendered = self.inference.Tokenize(inference_pb2.TokenizeRequest(chat=chat))
        self.assertIn("hello", rendered.rendered)
        request = generate_request()
        request.chat.CopyFrom(chat)
        events = list(self.inference.Generate(request))
        self.assertEqual(events[0].prompt_info.prompt_tokens, len(rendered.token_ids))

    def test_cancelling_ends_the_stream_and_frees_what_it_held(self):
        call = self.inference.Generate(generate_request(max_tokens=4000))
        next(call)
        next(call)
        call.cancel()
        with self.assertRaises(grpc.RpcError) as raised:
            list(call)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.CANCELLED)
        # The server still answers; test_operations looks at its memory.
        self.assertEqual(len(list(self.inference.Generate(generate_request()))), 10)

    def test_a_deadline_ends_the_stream(self):
        with self.assertRaises(grpc.RpcError) as raised:
            list(self.inference.Generate(generate_request(max_tokens=15000), timeout=0.2))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_a_bad_field_is_named_in_the_details(self):
        request = generate_request(sampling=sampling_pb2.SamplingParams(top_p=1.7, n=0))
        with self.assertRaises(grpc.RpcError) as raised:
            list(self.inference.Generate(request))
        status = rpc_status.from_call(raised.exception)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        [detail] = [d for d in status.details if d.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
        bad_request = error_details_pb2.BadRequest()
        detail.Unpack(bad_request)
        fields = {violation.field for violation in bad_request.field_violations}
        self.assertEqual(fields, {"sampling.top_p", "sampling.n"})

    def test_embeddings_have_length_one_and_the_same_numbers_as_bytes(self):
        inputs = [inference_pb2.EmbedInput(text=text) for text in ("fever", "a high temperature", "a bicycle")]
        floats = self.inference.Embed(inference_pb2.EmbedRequest(inputs=inputs))
        packed = self.inference.Embed(
            inference_pb2.EmbedRequest(inputs=inputs, encoding=inference_pb2.EMBEDDING_ENCODING_BYTES)
        )
        self.assertEqual([e.index for e in floats.embeddings], [0, 1, 2])
        self.assertTrue(floats.normalized)
        for as_floats, as_bytes in zip(floats.embeddings, packed.embeddings):
            self.assertEqual(len(as_floats.values), as_floats.dimensions)
            self.assertAlmostEqual(sum(v * v for v in as_floats.values), 1, places=4)
            decoded = array.array("f", as_bytes.data)
            self.assertEqual(list(as_floats.values), list(decoded))

    def test_a_stream_of_inputs_is_answered_by_index(self):
        texts = {10 * i: f"sentence number {i}" for i in range(20)}

        def requests():
            for index, text in texts.items():
                yield inference_pb2.EmbedStreamRequest(index=index, input=inference_pb2.EmbedInput(text=text))

        answers = {a.index: a.embedding for a in self.inference.EmbedStream(requests())}
        self.assertEqual(set(answers), set(texts))
        alone = self.inference.Embed(
            inference_pb2.EmbedRequest(inputs=[inference_pb2.EmbedInput(text=texts[70])])
        )
        for got, expected in zip(answers[70].values, alone.embeddings[0].values):
            self.assertAlmostEqual(got, expected, places=4)

    def test_text_goes_to_tokens_and_back(self):
        text = "发烧三天 — fever & chills 🤒"
        tokens = self.inference.Tokenize(inference_pb2.TokenizeRequest(text=text, return_tokens=True))
        self.assertEqual(len(tokens.tokens), len(tokens.token_ids))
        back = self.inference.Detokenize(inference_pb2.DetokenizeRequest(token_ids=tokens.token_ids))
        self.assertEqual(back.text, text)

    def test_the_models_are_listed_and_described(self):
        [listed] = self.server.models.ListModels(model_pb2.ListModelsRequest()).models
        got = self.server.models.GetModel(model_pb2.GetModelRequest(model="m1")).model
        self.assertEqual(listed, got)
        self.assertEqual((got.name, got.is_default, got.architecture), ("m1", True, "BaichuanM1ForCausalLM"))
        self.assertEqual(got.state, model_pb2.MODEL_STATE_READY)
        self.assertTrue(got.supports_generate and got.supports_embed and got.supports_chat)

    def test_an_unknown_model_is_not_found(self):
        for call in (
            lambda: list(self.inference.Generate(generate_request(model="nobody"))),
            lambda: self.server.models.GetModel(model_pb2.GetModelRequest(model="nobody")),
        ):
            with self.assertRaises(grpc.RpcError) as raised:
                call()
            self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)


if __name__ == "__main__":
    unittest.main()
