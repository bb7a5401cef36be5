"""Many calls through SMG: how they spread, and what becomes of them when a worker is killed, drained or full.

The client repeats nothing by itself; what is repeated, SMG repeats.
"""

import collections
import concurrent.futures
import http.client
import json
import time

import openai
import pytest

from fleet import MODEL, Gateway, Worker, wait_until

CALLERS = 8


class Calls:
    """Outcomes of calls of one kind, eight at a time."""

    def __init__(self, client, stream=False, tokens=100):
        self.client, self.stream, self.tokens = client, stream, tokens
        self.outcomes = collections.Counter()
        # When each call that failed began.
        self.failed = []

    def run(self, count, at=None, then=None):
        """Makes this many calls; when `at` of them are done, does `then`. The time of that."""
        happened = None
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            futures = [pool.submit(self._call, number) for number in range(count)]
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                began, outcome = future.result()
                self.outcomes[outcome] += 1
                if outcome != "ok":
                    self.failed.append(began)
                if done == at:
                    happened = time.monotonic()
                    then()
        return happened

    def _call(self, number):
        began = time.monotonic()
        try:
            answer = self.client.completions.create(
                model=MODEL, prompt=f"word {number}: ", max_tokens=self.tokens, temperature=0, stream=self.stream,
                extra_body={"ignore_eos": True},
            )
            if self.stream:
                reasons = [piece.choices[0].finish_reason for piece in answer if piece.choices]
                assert reasons[-1] == "length", reasons
            else:
                assert answer.usage.completion_tokens == self.tokens, answer.usage
        except openai.APIError as error:
            return began, f"{type(error).__name__}: {error}"
        return began, "ok"


@pytest.fixture
def pair():
    """Two workers of its own for a test that ends one."""
    with Worker("shutdown.drain_delay=4s") as one, Worker() as other:
        yield one, other


def test_calls_spread_evenly(workers, gateway):
    before = [worker.generations() for worker in workers]
    calls = Calls(gateway.client(), tokens=20)
    calls.run(80)
    assert calls.outcomes == {"ok": 80}
    shares = [worker.generations() - was for worker, was in zip(workers, before, strict=True)]
    assert sum(shares) == 80 and max(shares) <= 1.2 * min(shares), shares


def test_a_killed_worker_fails_only_streams_that_it_was_sending(pair):
    with Gateway(pair, "--policy", "round_robin") as smg:
        calls = Calls(smg.client(), stream=True)
        killed = calls.run(120, at=30, then=pair[0].kill)
        assert pair[1].generations() > 60
    assert len(calls.failed) <= CALLERS, calls.outcomes
    assert all(began < killed for began in calls.failed), calls.outcomes
    assert calls.outcomes["ok"] == 120 - len(calls.failed)


def test_a_killed_worker_fails_no_call_that_can_be_repeated(pair):
    with Gateway(pair, "--policy", "round_robin") as smg:
        calls = Calls(smg.client())
        calls.run(120, at=30, then=pair[0].kill)
    assert calls.outcomes == {"ok": 120}


def test_a_drained_worker_fails_nothing_even_where_nothing_is_repeated(pair):
    drained, other = pair
    flags = ("--policy", "round_robin", "--health-failure-threshold", "1", "--disable-retries")
    with Gateway(pair, *flags) as smg:
        calls = Calls(smg.client(), stream=True, tokens=60)

        def drain():
            drained.terminate()
            # Calls go on while the worker's health falls, while it is left out, and once it is gone.
            pool.submit(drained.wait)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            calls.run(60, at=20, then=drain)
            while drained.process.poll() is None:
                calls.run(20)
            calls.run(20)
        assert drained.process.returncode == 0
        assert other.generations() > calls.outcomes["ok"] / 2
    assert set(calls.outcomes) == {"ok"}


def test_full_workers_answer_429_at_once():
    """SMG 1.13 leaves out when to come back, which the worker tells it: when that fails, docs/SCALING.md is to say so."""
    full = ("engine.max_sequences=8", "engine.max_waiting=1")
    with Worker(*full) as one, Worker(*full) as other, Gateway((one, other), "--policy", "round_robin", "--disable-retries") as smg:
        client = smg.client()

        def hold(metric):
            """One request more on each worker, which takes all of its sequences; waits until that shows."""
            for _ in (one, other):
                held.append(
                    client.completions.create(
                        model=MODEL, prompt="heart: ", max_tokens=1900, temperature=0, n=8, stream=True,
                        extra_body={"ignore_eos": True},
                    )
                )
            wait_until(lambda: all(worker.value(metric) >= 1 for worker in (one, other)), f"no {metric}", 30)

        held = []
        hold("vllm:num_requests_running")
        hold("vllm:num_requests_waiting")
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model=MODEL, prompt="lung: ", max_tokens=1)
        assert "1 requests wait already" in str(refused.value)
        assert "retry-after" not in refused.value.response.headers
        assert sum(worker.value("baichuan_requests_rejected_total", reason="queue_full") for worker in (one, other)) == 1
        for stream in held:
            stream.close()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_goes_frees_the_workers_memory(workers, gateway, stream):
    def cancelled():
        return sum(worker.value("baichuan_requests_cancelled_total") for worker in workers)

    def generated():
        return sum(worker.value("vllm:generation_tokens_total") for worker in workers)

    asked = 1900
    wait_until(lambda: not any(worker.blocks() for worker in workers), "memory was in use before", 30)
    before = cancelled(), generated()
    client = gateway.client()
    options = {"model": MODEL, "prompt": "heart: ", "max_tokens": asked, "temperature": 0, "extra_body": {"ignore_eos": True}}
    if stream:
        answer = client.completions.create(stream=True, **options)
        next(iter(answer))
        answer.close()
    else:
        # A client that gives up while it waits, once a worker has its request.
        host = gateway.url.removeprefix("http://")
        asking = http.client.HTTPConnection(host)
        body = {**{key: value for key, value in options.items() if key != "extra_body"}, **options["extra_body"]}
        asking.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        wait_until(lambda: any(worker.value("vllm:num_requests_running") for worker in workers), "no worker got it", 30)
        asking.close()
    wait_until(lambda: cancelled() == before[0] + 1, "nobody told the worker", 30)
    wait_until(lambda: not any(worker.blocks() for worker in workers), "the memory was kept", 30)
    assert generated() - before[1] < asked
