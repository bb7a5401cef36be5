#!/usr/bin/env python3
"""A server on a GPU under mixed load: prompts of all lengths, drawn and greedy, clients that go away in the middle.

usage: mixed.py SERVER CLIENT SECONDS FOLDER [SERVER OPTION]...

At the end nothing may be held: no running request, no block, no slot; and the process must have as much of the device's
memory as after its first requests, but for a few MiB of steps recorded since.
"""

import json
import random
import subprocess
import sys
import threading
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from agree import Server  # noqa: E402


# Steps of sizes that did not come up at first are recorded when they do.
RECORDED_MIB = 64


def memory(pid):
    """MiB of device memory that the process holds; of the whole first device where the driver does not tell."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    for line in subprocess.run(query, capture_output=True, text=True).stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if fields[0] == str(pid) and fields[1].isdigit():
            return int(fields[1])
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(query, capture_output=True, text=True).stdout.split()[0])


def main():
    server, client, seconds, folder, *options = sys.argv[1:]
    counts = {"finished": 0, "cut off": 0, "failed": 0}
    lock = threading.Lock()
    with Server(server, folder, options) as running:

        def call(rng, may_cut):
            words = " ".join(rng.choice(["heart", "lung", "the", "of", "and", "bone"]) for _ in range(rng.randint(1, 700)))
            command = [client, "--server", running.address, "--json", "generate", words, "--ignore-eos"]
            command += ["--max-tokens", str(rng.randint(1, 200)), "--seed", str(rng.randint(0, 10**9))]
            if rng.random() < 0.3:
                command += ["--temperature", "0"]
            if rng.random() < 0.2:
                command += ["--logprobs", "2"]
            if rng.random() < 0.2:
                command += ["-n", "3"]
            cut = rng.uniform(0.02, 1.5) if may_cut and rng.random() < 0.4 else 120
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                how = "finished" if process.wait(cut) == 0 else "failed"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                how = "cut off"
            with lock:
                counts[how] += 1

        def client_loop(number, until, may_cut):
            rng = random.Random(number)
            while time.monotonic() < until:
                call(rng, may_cut)

        def load(n, length, may_cut):
            until = time.monotonic() + length
            threads = [threading.Thread(target=client_loop, args=(i, until, may_cut)) for i in range(n)]
            [t.start() for t in threads]
            [t.join() for t in threads]

        load(24, min(10.0, float(seconds) / 3), False)
        before = memory(running.process.pid)
        load(24, float(seconds), True)
        time.sleep(1)
        after = memory(running.process.pid)
        report = subprocess.run(
            [client, "--server", running.address, "--json", "load"], capture_output=True, text=True
        ).stdout
        print(counts, f"device memory {before} MiB before, {after} MiB after")
        print(report.strip())
        held = [
            (key, value)
            for key, value in flat(json.loads(report.splitlines()[0]))
            if ("used" in key or "running" in key or "waiting" in key) and value not in (0, "0", 0.0)
        ]
        if held or after > before + RECORDED_MIB or counts["failed"] or not counts["cut off"]:
            sys.exit(f"held: {held}, {counts}")


def flat(value, path=""):
    if isinstance(value, dict):
        for key, v in value.items():
            yield from flat(v, f"{path}.{key}")
    elif isinstance(value, list):
        for v in value:
            yield from flat(v, path)
    else:
        yield path, value


if __name__ == "__main__":
    main()
