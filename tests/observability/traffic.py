"""Traffic of every kind that the dashboards show: streams, embeddings, mistakes, overload, and callers that go away."""

import collections
import random
import threading

import grpc

from baichuan.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc, sampling_pb2

# What a server under such traffic may answer; anything else is a fault.
EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
}


class Traffic:
    """Callers that go on until they are stopped; a context manager."""

    def __init__(self, address, callers, seed=1):
        self.channel = grpc.insecure_channel(address)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        models = model_pb2_grpc.ModelServiceStub(self.channel).ListModels(model_pb2.ListModelsRequest()).models
        self.vocabulary, self.context = models[0].vocab_size, models[0].max_context
        self.stopped = threading.Event()
        self.codes, self.faults, self.lock = collections.Counter(), [], threading.Lock()
        # How many of the callers are at work; the rest wait.
        self.active = callers
        self.wake = threading.Condition()
        self.threads = [threading.Thread(target=self._caller, args=(n, seed + n)) for n in range(callers)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.set_active(0)
        for thread in self.threads:
            thread.join()
        self.channel.close()

    def set_active(self, callers):
        with self.wake:
            self.active = callers
            self.wake.notify_all()

    def _caller(self, number, seed):
        choice = random.Random(seed)
        kinds = [self._stream] * 12 + [self._embed] * 3 + [self._unary] * 2 + [self._hurry, self._leave, self._mistake, self._unknown, self._tokenize]
        while not self.stopped.is_set():
            with self.wake:
                self.wake.wait_for(lambda: number < self.active or self.stopped.is_set())
            if self.stopped.is_set():
                return
            try:
                choice.choice(kinds)(choice)
                code = grpc.StatusCode.OK
            except grpc.RpcError as error:
                code = error.code()
                if code not in EXPECTED:
                    self.faults.append(f"{code}: {error.details()}")
                if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.stopped.wait(0.2)
            with self.lock:
                self.codes[code.name] += 1

    def _request(self, choice, **fields):
        prompt = [choice.randrange(8, self.vocabulary) for _ in range(choice.choice([8, 24, 64, 200]))]
        stopping = sampling_pb2.StoppingParams(max_tokens=choice.choice([8, 24, 64]), ignore_eos=choice.random() < 0.8)
        return inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=prompt), stopping=stopping,
            sampling=sampling_pb2.SamplingParams(temperature=1, seed=choice.randrange(1 << 30)), **fields,
        )

    def _stream(self, choice):
        # In a trace of the caller's, which the exemplars of the server's histograms then name.
        trace = (("traceparent", f"00-{choice.randrange(1, 1 << 128):032x}-{choice.randrange(1, 1 << 64):016x}-01"),)
        for _ in self.stub.Generate(self._request(choice), timeout=60, metadata=trace):
            pass

    def _unary(self, choice):
        self.stub.GenerateUnary(inference_pb2.GenerateUnaryRequest(request=self._request(choice)), timeout=60)

    def _embed(self, choice):
        ids = [choice.randrange(8, self.vocabulary) for _ in range(choice.choice([8, 40, 120]))]
        inputs = [inference_pb2.EmbedInput(token_ids=inference_pb2.TokenIds(ids=ids)) for _ in range(choice.randint(1, 4))]
        self.stub.Embed(inference_pb2.EmbedRequest(inputs=inputs), timeout=60)

    def _tokenize(self, _):
        self.stub.Tokenize(inference_pb2.TokenizeRequest(text="hypoglycemia is a low concentration of glucose"), timeout=60)

    def _hurry(self, choice):
        request = self._request(choice, time_limit_ms=choice.choice([1, 20]))
        for _ in self.stub.Generate(request, timeout=60):
            pass

    def _leave(self, choice):
        call = self.stub.Generate(self._request(choice), timeout=60)
        for _ in call:
            call.cancel()

    def _mistake(self, choice):
        request = self._request(choice)
        request.sampling.top_p = 7
        list(self.stub.Generate(request, timeout=60))

    def _unknown(self, choice):
        list(self.stub.Generate(self._request(choice, model="no-such-model"), timeout=60))
