#!/usr/bin/env python3
"""Holds models that mistral.rs runs on a GPU to what `transformers` says, and to themselves in company.

usage: families.py SERVER CLIENT FOLDER     on a machine with a GPU; SERVER has the feature mistralrs-cuda, FOLDER is what
                                            `crates/xtask/python/families.py --wide FOLDER` wrote;
                                            DEVICE=cpu tries the script without a GPU

Greedy tokens in f32, one by one and sixty at once through paged attention, must be the golden ones, and log-probabilities
within 1e-3 of them. Tokens drawn with a seed must be the host's. Quantised at load and in bf16, how many are golden is told.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agree import DRAWN, GREEDY, Server, ask_ids, gather

BOUND = 1e-3
IN_COMPANY = 12
DEVICE = os.environ.get("DEVICE", "cuda")
GPU = ["--device", DEVICE, "--set", "engine.cache.bytes=268435456"]
ROUNDED = [["--isq", "Q8_0"], ["--isq", "Q4K"]]
if DEVICE != "cpu":  # there all is computed in f32
    ROUNDED.append(["--dtype", "bf16"])


def told(reply):
    return [t for ids in gather(reply, "token_ids") for t in ids], list(gather(reply, "logprob"))


def answers(client, server, golden, options, at_once):
    """Tokens and log-probabilities for every golden prompt."""

    def one(entry):
        ids, n = entry["prompt"], len(entry["tokens"])
        return told(ask_ids(client, server.address, ids, n, options, 300))

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, golden))


def agreeing(golden, got):
    return sum(entry["tokens"] == tokens for entry, (tokens, _) in zip(golden, got))


def main():
    server, client, folder = sys.argv[1:]
    for model in sorted(p for p in Path(folder).iterdir() if (p / "golden.json").exists()):
        golden = list(json.loads((model / "golden.json").read_text()).values())
        scored = [*GREEDY, "--logprobs", "0"]
        with Server(server, model, ["--dtype", "f32", "--device", "cpu"]) as host:
            drawn = answers(client, host, golden, DRAWN, 1)
        with Server(server, model, ["--dtype", "f32", *GPU]) as gpu:
            alone = answers(client, gpu, golden, scored, 1)
            together = answers(client, gpu, golden * IN_COMPANY, scored, len(golden) * IN_COMPANY)
            drawn_there = answers(client, gpu, golden, DRAWN, len(golden))
        worst = 0.0
        for entry, (tokens, logprobs) in zip(golden * (1 + IN_COMPANY), alone + together):
            if tokens != entry["tokens"] or len(logprobs) != len(tokens):
                sys.exit(f"{model.name}: {tokens} and {logprobs} instead of {entry}")
            worst = max([worst, *(abs(a - b) for a, b in zip(logprobs, entry["logprobs"]))])
        if not worst <= BOUND:
            sys.exit(f"{model.name}: log-probabilities off by {worst}")
        if [tokens for tokens, _ in drawn] != [tokens for tokens, _ in drawn_there]:
            sys.exit(f"{model.name}: drawn {drawn_there} instead of {drawn}")
        n = sum(len(tokens) for tokens, _ in alone + together)
        print(f"{model.name}, f32: {n} tokens equal, log-probabilities within {worst:.1e}; drawn ones the host's")
        for options in ROUNDED:
            with Server(server, model, [*options, *GPU]) as gpu:
                got = answers(client, gpu, golden * IN_COMPANY, GREEDY, len(golden) * IN_COMPANY)
            if any(len(tokens) != len(entry["tokens"]) for entry, (tokens, _) in zip(golden * IN_COMPANY, got)):
                sys.exit(f"{model.name} {options}: tokens are missing: {got}")
            equal = agreeing(golden * IN_COMPANY, got)
            print(f"{model.name}, {options[1]}: {equal} of {len(got)} answers the golden ones")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
