#!/usr/bin/env python3
"""Holds the server on a GPU to the server on the host: the golden checkpoints over gRPC, in f32.

usage: agree.py SERVER CLIENT [MAP]...      on a machine with a GPU, from the repository's root; DEVICE is cuda or metal

Tokens must be equal, greedy and drawn with a seed (on the host by the host's sampler, on the GPU by the device's), and
log-probabilities of prompts and completions equal within 1e-4. Each MAP is a --device-map to check besides one GPU,
such as "0:2" (the rest on the host) or "0:2;1:2".
"""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

GOLDEN = Path(os.environ.get("GOLDEN", Path(__file__).parents[1] / "golden"))
BOUND = 1e-4
# Keys and values too: else a bf16 checkpoint's are bf16 on the host.
F32 = ["--dtype", "f32", "--set", "model.cache_dtype=f32"]
PROMPTS = ["a", "the heart is", "x y z", "0123456789 " * 6]
GREEDY = ["--temperature", "0"]
DRAWN = "--temperature 0.8 --top-k 20 --top-p 0.9 --min-p 0.01 --repetition-penalty 1.1 --seed 7".split()
PENALISED = "--temperature 1 --presence-penalty 0.5 --frequency-penalty 0.3 --seed 11".split()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, server, folder, options):
        self.address = f"127.0.0.1:{free_port()}"
        fixed = ["--admin-listen", "off", "--set", "log.filter=warn"]
        self.process = subprocess.Popen(
            [server, "serve", "--model", folder, "--listen", self.address, *fixed, *options]
        )
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit(f"the server ended with {self.process.returncode}: {options}")
            health = [server, "health", "--server", self.address]
            if subprocess.run(health, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        sys.exit("the server is not ready")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


def ask(client, address, prompt, options):
    return ask_for(client, address, prompt, 24, options, 120)


def ask_for(client, address, prompt, n, options, seconds):
    return run([client, "--server", address, "--json", "generate", prompt], n, options, seconds)


def ask_ids(client, address, ids, n, options, seconds):
    ids = ",".join(map(str, ids))
    return run([client, "--server", address, "--json", "generate", "--prompt-ids", ids], n, options, seconds)


def run(command, n, options, seconds):
    command += ["--max-tokens", str(n), "--ignore-eos", "--token-ids", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if done.returncode != 0:
        sys.exit(f"{command}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def gather(value, key):
    """All values of a key, wherever they are."""
    if isinstance(value, dict):
        for k, v in value.items():
            if k == key:
                yield v
            yield from gather(v, key)
    elif isinstance(value, list):
        for v in value:
            yield from gather(v, key)


def answers(client, server):
    """Tokens, and log-probabilities where they are asked for, of every prompt under every set of options."""
    scored = [*GREEDY, "--logprobs", "2", "--prompt-logprobs", "2"]
    wishes = [(p, o) for o in (GREEDY, DRAWN, PENALISED, scored) for p in PROMPTS]
    with ThreadPoolExecutor(len(wishes)) as pool:
        replies = pool.map(lambda wish: ask(client, server.address, *wish), wishes)
    found = []
    for reply in replies:
        tokens = [t for ids in gather(reply, "token_ids") for t in ids]
        found.append((tokens, list(gather(reply, "logprob"))))
    return wishes, found


def main():
    server, client, *maps = sys.argv[1:]
    device = ["--device", os.environ.get("DEVICE", "cuda")]
    setups = [device] + [[*device, "--device-map", m] for m in maps]
    for folder in sorted(p for p in GOLDEN.iterdir() if (p / "golden.safetensors").exists()):
        with Server(server, folder, [*F32, "--device", "cpu"]) as host:
            wishes, expected = answers(client, host)
        for setup in setups:
            with Server(server, folder, [*F32, *setup]) as gpu:
                _, got = answers(client, gpu)
            worst = 0.0
            n_tokens = 0
            for (prompt, options), a, b in zip(wishes, expected, got):
                if a[0] != b[0] or len(a[0]) != 24 or len(a[1]) != len(b[1]):
                    sys.exit(f"{folder.name} {setup}: {prompt!r} {options}: {b[0]} instead of {a[0]}")
                n_tokens += len(a[0])
                worst = max([worst, *(abs(x - y) for x, y in zip(a[1], b[1]))])
            n = sum(len(a[1]) for a in expected)
            if not worst <= BOUND or n == 0:
                sys.exit(f"{folder.name} {setup}: {n} log-probabilities, off by {worst}")
            print(f"{folder.name} {' '.join(setup)}: {n_tokens} tokens equal, {n} log-probabilities within {worst:.1e}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
