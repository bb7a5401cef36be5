"""Workers, SMG before them, and what the OpenAI client sees of both."""

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import openai

from ports import free_port
from server import Server

MODEL = "m1"
STARTUP_SECONDS = 90
POLL_SECONDS = 0.05


def wait_until(condition, what, seconds=STARTUP_SECONDS):
    """Waits for a condition, and says what did not come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s: {what}")
        time.sleep(POLL_SECONDS)


def page(url):
    """A page's status and text, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Worker(Server):
    """A server with the facade on and its admin port open."""

    def __init__(self, *settings, checkpoint=None):
        self.admin_port = free_port()
        super().__init__(
            "grpc.vllm_facade=true", "model.threads=1", f"listen.admin=127.0.0.1:{self.admin_port}", *settings,
            checkpoint=checkpoint,
        )
        self.url = "grpc://" + next(line for line in self.log if "gRPC listens" in line).split('"address":"')[1].split('"')[0]

    def metrics(self):
        """The page that Prometheus and the routers read."""
        return page(f"http://127.0.0.1:{self.admin_port}/metrics")[1]

    def value(self, name, **labels):
        """A metric's value, summed over the series that have these labels."""
        total = 0.0
        for series, value in re.findall(rf"^{re.escape(name)}(?:{{([^}}]*)}})? (\S+)$", self.metrics(), re.MULTILINE):
            if all(f'{label}="{wanted}"' in series for label, wanted in labels.items()):
                total += float(value)
        return total

    def generations(self, code="OK"):
        """Calls of the facade's Generate that ended so."""
        return int(self.value("grpc_server_handled_total", grpc_service="vllm.grpc.engine.VllmEngine", grpc_method="Generate", grpc_code=code))

    def blocks(self):
        """Blocks of both pools in use."""
        return self.value("baichuan_kv_pool_blocks_used")

    def kill(self):
        """SIGKILL: no farewell."""
        self.process.kill()
        self.process.wait()


class Gateway:
    """SMG before these workers; a context manager."""

    def __init__(self, workers, *flags):
        port, metrics = free_port(), free_port()
        self.workers = workers
        self.url = f"http://127.0.0.1:{port}"
        self.folder = tempfile.TemporaryDirectory()
        self.log = open(f"{self.folder.name}/log", "w+", encoding="utf-8")
        command = [
            "smg", "launch", "--host", "127.0.0.1", "--port", str(port),
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics),
            "--worker-urls", *[worker.url for worker in workers],
            "--worker-startup-check-interval", "1", "--health-check-interval-secs", "1", "--load-monitor-interval", "1",
            "--log-level", "warn", *flags,
        ]
        # No hub and no proxy is asked for anything: the tokenizer comes from the workers.
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=env)

    def __enter__(self):
        try:
            wait_until(self.is_ready, f"SMG was not ready:\n{self.said()}")
        except BaseException:
            print(self.said())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def said(self):
        """Its log so far."""
        return pathlib.Path(self.log.name).read_text(encoding="utf-8")

    def is_ready(self):
        """Whether every worker is taken up and the tokenizer is there."""
        if self.process.poll() is not None:
            raise AssertionError(f"SMG ended with {self.process.returncode}:\n{self.said()}")
        with contextlib.suppress(OSError):
            status, _ = page(f"{self.url}/readiness")
            _, listed = page(f"{self.url}/workers")
            _, tokenizers = page(f"{self.url}/v1/tokenizers")
            healthy = listed.count('"is_healthy":true')
            return status == 200 and healthy == len(self.workers) and MODEL in tokenizers
        return False

    def client(self, **options):
        """An OpenAI client that repeats nothing by itself."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60, **options)
