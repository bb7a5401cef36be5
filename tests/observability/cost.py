"""What being watched costs: the same load with nobody looking, and with everything on.

usage: cost.py CLIENT_BINARY [ROUNDS]    by tests/deployment/run.sh's environment, with an optimised server

Each round runs 64 streams against a fresh server three ways, in turn: nobody asks for metrics; Prometheus' format is
scraped every second; and besides that every trace is recorded and sent over OTLP to a collector on this machine, metrics
too. Compared are the medians of tokens per second, and of the server's processor time per token, which a busy machine
disturbs less.
"""

import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import threading
import urllib.request

import grpc

from pair import Observed

STREAMS, REQUESTS, PROMPT_TOKENS, MAX_TOKENS = 64, 2048, 16, 128
WAYS = ("alone", "scraped", "scraped and traced")
SETTINGS = ["engine.max_sequences=64", "engine.cache.context_tokens=32768"]


class Collector(grpc.GenericRpcHandler):
    """Takes whatever is sent over OTLP and forgets it; a context manager."""

    def __init__(self):
        self.calls = 0
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def service(self, _):
        def take(_request, _context):
            self.calls += 1
            return b""

        return grpc.unary_unary_rpc_method_handler(take)

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None)


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(client, way, collector):
    settings = list(SETTINGS)
    if "traced" in way:
        settings += [f"telemetry.otlp_endpoint=http://127.0.0.1:{collector.port}", "telemetry.metrics_interval=1s", "telemetry.span_delay=1s"]
    with Observed(*settings) as server:
        ended = threading.Event()

        def scrape():
            accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
            while not ended.wait(1):
                request = urllib.request.Request(f"http://127.0.0.1:{server.admin_port}/metrics", headers=accept)
                urllib.request.urlopen(request, timeout=30).read()

        scraper = threading.Thread(target=scrape)
        if "scraped" in way:
            scraper.start()
        before = processor_seconds(server.process.pid)
        bench = [
            client, "--server", server.address, "--json", "bench", "--concurrency", str(STREAMS), "--requests", str(REQUESTS),
            "--prompt-tokens", str(PROMPT_TOKENS), "--max-tokens", str(MAX_TOKENS), "--warmup", "0",
        ]
        report = json.loads(subprocess.run(bench, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
        spent = processor_seconds(server.process.pid) - before
        ended.set()
        if scraper.is_alive():
            scraper.join()
    if report["errors"]:
        raise AssertionError(report)
    tokens = REQUESTS * MAX_TOKENS
    return tokens / report["elapsed_s"], spent / tokens * 1e6


def main():
    client, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    found = {way: [] for way in WAYS}
    with Collector() as collector:
        for number in range(rounds):
            # Another one goes first each time.
            for way in WAYS[number % 3:] + WAYS[:number % 3]:
                found[way].append(measure(client, way, collector))
        if not collector.calls:
            raise AssertionError("nothing was sent over OTLP")
    alone = [statistics.median(values) for values in zip(*found["alone"])]
    print(f"{STREAMS} streams, {REQUESTS} requests of {PROMPT_TOKENS} + {MAX_TOKENS} tokens, medians of {rounds} rounds")
    for way, runs in found.items():
        speed, cost = (statistics.median(values) for values in zip(*runs))
        spread = max(speed for speed, _ in runs) - min(speed for speed, _ in runs)
        print(
            f"{way:20} {speed:8.0f} tokens/s (spread {spread:.0f}, {speed / alone[0] - 1:+.1%})"
            f"  {cost:6.1f} µs of processor a token ({cost / alone[1] - 1:+.1%})"
        )


if __name__ == "__main__":
    main()
