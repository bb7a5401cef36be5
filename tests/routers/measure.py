"""Measures one worker against two behind SMG, each pinned to one core, and what SMG adds; docs/SCALING.md has the figures.

usage: tests/routers/run.sh SERVER_BINARY CHECKPOINT_DIR measure.py -s -p no:randomly   (as a test, so that it finds its client)
       MEASURE_HEAVY: a checkpoint whose tokens cost so much that client and router do not count (the first part is left
                      out without; with a tokenizer.json, which GuideLLM reads), MEASURE_SHAPE: tokens of prompt and
                      answer (16x16), GUIDELLM: the program, MEASURE_SECONDS: of each of the two runs (40)
"""

import contextlib
import http.client
import json
import os
import pathlib
import statistics
import subprocess
import time
import urllib.parse

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from fleet import MODEL, Gateway, Worker

HEAVY = os.environ.get("MEASURE_HEAVY")
GUIDELLM = os.environ.get("GUIDELLM", "guidellm")
SECONDS = os.environ.get("MEASURE_SECONDS", "40")
PROMPT_TOKENS, OUTPUT_TOKENS = map(int, os.environ.get("MEASURE_SHAPE", "16x16").split("x"))
STREAMS_PER_WORKER = 4
ALONE = 300


def pin(process, core):
    """All threads of a process to one core."""
    subprocess.run(["taskset", "--all-tasks", "--cpu-list", "--pid", str(core), str(process.pid)], check=True, capture_output=True)


def cpu_seconds(process):
    """What a process has computed so far."""
    user, system = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def guided(smg, streams, folder):
    """GuideLLM's own report of this many streams at a time."""
    report = folder / f"{streams}.json"
    subprocess.run(
        [
            GUIDELLM, "run", "--disable-console", "--tokenizer", f"kind=hf_auto,model={HEAVY}",
            "--backend", f"kind=openai_http,target={smg.url},model={MODEL},request_format=/v1/completions",
            "--profile", f"kind=concurrent,streams={streams}", "--constraint", f"kind=max_duration,seconds={SECONDS}",
            "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}",
            "--output", f"kind=json,path={report}",
        ],
        check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    return benchmark["metrics"]


@pytest.mark.skipif(not HEAVY, reason="MEASURE_HEAVY is not set")
def test_one_worker_against_two(tmp_path):
    for count in (1, 2):
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker("engine.max_sequences=16", checkpoint=HEAVY)) for _ in range(count)]
            for core, worker in enumerate(workers):
                pin(worker.process, core)
            smg = stack.enter_context(Gateway(workers, "--policy", "round_robin"))
            before = cpu_seconds(smg.process)
            metrics = guided(smg, STREAMS_PER_WORKER * count, tmp_path)
            print(f"\n{count} worker(s), {STREAMS_PER_WORKER * count} streams: {[worker.generations() for worker in workers]} calls")
            print(f"  SMG computed {cpu_seconds(smg.process) - before:.1f} s")
            for name in ("requests_per_second", "output_tokens_per_second"):
                print(f"  {name}: {metrics[name]['successful']['mean']:.2f}")
            for name in ("request_latency", "time_to_first_token_ms", "inter_token_latency_ms"):
                found = metrics[name]["successful"]
                print(f"  {name}: p50 {found['percentiles']['p50']:.3f}, p99 {found['percentiles']['p99']:.3f}")


def spread(name, seconds):
    """Prints median and 99th percentile in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    print(f"  {name}: p50 {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms")


@pytest.mark.parametrize("tokens", [1, 32])
def test_what_smg_adds(tokens):
    """One call at a time, whole answers: by gRPC to the worker, then by HTTP to SMG before it. The client's own share differs."""
    with Worker() as worker, Gateway([worker]) as smg:
        pin(worker.process, 0)
        pin(smg.process, 1)
        os.sched_setaffinity(0, {1})
        direct, routed, own = [], [], []
        with grpc.insecure_channel(worker.url.removeprefix("grpc://")) as channel:
            stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
            request = vllm_engine_pb2.GenerateRequest(
                tokenized=vllm_engine_pb2.TokenizedInput(input_ids=[468, 1439, 3906, 3996, 3973]),
                sampling_params=vllm_engine_pb2.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
            )
            for _ in range(ALONE):
                began = time.perf_counter()
                list(stub.Generate(request))
                direct.append(time.perf_counter() - began)
        body = json.dumps({"model": MODEL, "prompt": "appendicitis: ", "max_tokens": tokens, "temperature": 0, "ignore_eos": True})
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(smg.url).netloc)
        for _ in range(ALONE):
            busy = worker.value("vllm:e2e_request_latency_seconds_sum")
            began = time.perf_counter()
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            took = time.perf_counter() - began
            routed.append(took)
            own.append(took - (worker.value("vllm:e2e_request_latency_seconds_sum") - busy))
        connection.close()
        print(f"\n{tokens} token(s), one call at a time")
        spread("gRPC to the worker", direct)
        spread("HTTP to SMG", routed)
        spread("HTTP to SMG, less what the worker says it took", own)
