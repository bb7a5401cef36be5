"""Two real servers and a balancer before them, and callers that retry as a client should."""

import collections
import concurrent.futures
import pathlib
import re
import subprocess
import tempfile
import threading
import time
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baichuan.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2
from places import ROOT
from ports import free_port
from server import READINESS, Server

# What says that a call did not run to its end for want of a server: UNAVAILABLE, and INTERNAL or CANCELLED or UNKNOWN
# where a proxy lost the server while messages flowed.
LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
STARTUP_SECONDS = 60


class Observed(Server):
    """A server whose admin port is open."""

    def __init__(self, *settings):
        self.admin_port = free_port()
        super().__init__(f"listen.admin=127.0.0.1:{self.admin_port}", "model.threads=1", *settings)

    @property
    def port(self):
        return int(self.address.rsplit(":", 1)[1])

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=30) as answer:
            return answer.read().decode()

    def ended(self, method):
        """Calls of a method that ended with OK."""
        pattern = rf'grpc_server_handled_total{{[^}}]*grpc_method="{method}"[^}}]*grpc_code="OK"[^}}]*}} (\d+)'
        return sum(int(count) for count in re.findall(pattern, self.metrics()))


class Balancer:
    """A program that was given a configuration in which the ports of one machine were put; a context manager."""

    def __init__(self, config, replacements, command):
        self.folder = tempfile.TemporaryDirectory()
        text = config.read_text()
        for old, new in replacements.items():
            assert old in text, f"{config.name} has no {old}"
            text = text.replace(old, new)
        self.config = pathlib.Path(self.folder.name) / config.name
        self.config.write_text(text)
        self.log = open(f"{self.folder.name}/log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [word.format(config=self.config, folder=self.folder.name) for word in command],
            stdout=self.log, stderr=subprocess.STDOUT, cwd=ROOT,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()
        self.folder.cleanup()

    def said(self):
        return pathlib.Path(self.log.name).read_text()


class Load:
    """Callers that run short streams one after another, over connections of their own."""

    def __init__(self, address, callers=8, attempts=6, max_tokens=4):
        self.max_tokens, self.attempts, self.callers = max_tokens, attempts, callers
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [grpc.insecure_channel(address, options) for _ in range(2)]
        self.lock = threading.Condition()
        self.done, self.retries, self.failures = 0, collections.Counter(), []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for channel in self.channels:
            channel.close()

    def ready(self):
        """Waits until the balancer has a server that is ready."""
        health = health_pb2_grpc.HealthStub(self.channels[0])
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            try:
                request = health_pb2.HealthCheckRequest(service=READINESS)
                if health.Check(request, wait_for_ready=True, timeout=5).status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                time.sleep(0.1)
        raise AssertionError(f"nothing was ready behind the balancer after {STARTUP_SECONDS} s")

    def run(self, calls, at=None, then=None):
        """Runs this many calls; once `at` of them are done, does `then` while the rest goes on."""
        with concurrent.futures.ThreadPoolExecutor(self.callers + 1) as pool:
            numbers = iter(range(calls))
            futures = [pool.submit(self._caller, numbers) for _ in range(self.callers)]
            if then:
                with self.lock:
                    self.lock.wait_for(lambda: self.done >= at, timeout=300)
                then()
            for future in futures:
                future.result()

    def _caller(self, numbers):
        while True:
            with self.lock:
                number = next(numbers, None)
            if number is None:
                return
            self._call(number)
            with self.lock:
                self.done += 1
                self.lock.notify_all()

    def _call(self, number):
        stub = inference_pb2_grpc.InferenceServiceStub(self.channels[number % len(self.channels)])
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=[3 + number % 50, 4, 5]),
            sampling=sampling_pb2.SamplingParams(temperature=0),
            stopping=sampling_pb2.StoppingParams(max_tokens=self.max_tokens, ignore_eos=True),
        )
        for attempt in range(self.attempts):
            try:
                events = list(stub.Generate(request, timeout=60))
                if events[-1].WhichOneof("event") != "finish":
                    raise AssertionError(f"call {number} ended without its end")
                return
            except grpc.RpcError as error:
                with self.lock:
                    if error.code() not in LOST or attempt + 1 == self.attempts:
                        self.failures.append(f"{error.code().name}: {error.details()}")
                        return
                    self.retries[error.code().name] += 1
            time.sleep(0.05 * 2**attempt)
