#!/usr/bin/env python3
"""Long prompts, long answers and full batches: the server on a GPU against the server on the host, over gRPC, in f32.

usage: lengths.py SERVER CLIENT FOLDER [SERVER OPTION]...

FOLDER is a checkpoint with a window of 8192, such as `cargo xtask make-model --preset bench --dtype f32`. Greedy tokens must
be equal: of a prompt of 20 000 tokens, of an answer that begins before position 8192 and ends behind it, and of 64 prompts of mixed
lengths that share their steps, which must also be what each of them gets alone.
"""

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from agree import F32, Server, ask_for, gather  # noqa: E402


def text(seed, n_bytes):
    rng = random.Random(seed)
    words = ["heart", "lung", "the", "of", "and", "bone", "in", "a", "vein", "is"]
    out = ""
    while len(out) < n_bytes:
        out += rng.choice(words) + " "
    return out[:n_bytes]


def cases():
    """(name, prompt, tokens of the prompt, tokens of the answer)"""
    yield "prompt of 20000", text(1, 120_000), 20_000, 16
    yield "answer across 8192", text(2, 60_000), 8_150, 100
    rng = random.Random(3)
    for i in range(64):
        n = rng.choice([1, 2, 15, 16, 17, 100, rng.randint(1, 400)])
        yield f"mixed {i}", text(10 + i, 16 * n + 64), n, 32


def answers(client, server, wishes, at_once):
    def answer(case):
        _, prompt, n_prompt, n = case
        options = ["--temperature", "0", "--truncate-prompt", str(n_prompt)]
        reply = ask_for(client, server.address, prompt, n, options, 500)
        used = max(gather(reply, "prompt_tokens"))
        if used != n_prompt:
            sys.exit(f"a prompt has {used} tokens instead of {n_prompt}")
        return [token for ids in gather(reply, "token_ids") for token in ids]

    begun = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        got = list(pool.map(answer, wishes))
    return got, time.monotonic() - begun


def main():
    server, client, folder, *options = sys.argv[1:]
    wishes = list(cases())
    f32 = [*F32, "--set", "engine.max_sequences=64"]
    with Server(server, folder, [*f32, "--device", "cpu"]) as host:
        expected, took = answers(client, host, wishes, 64)
    print(f"host: {took:.0f} s", flush=True)
    for name, chunk in [("chunks of 2048", 2048), ("chunks of 500", 500)]:
        steps = ["--set", f"engine.prefill_chunk_tokens={chunk}", "--set", "engine.max_step_tokens=2048"]
        with Server(server, folder, [*f32, *(options or ["--device", "cuda"]), *steps]) as gpu:
            for how, at_once in [("together", 64), ("alone", 1)]:
                got, took = answers(client, gpu, wishes, at_once)
                for (case, _, _, n), a, b in zip(wishes, expected, got):
                    if a != b or len(a) != n:
                        sys.exit(f"{case}, {name}, {how}: {b} instead of {a}")
                print(f"{name}, {how}: {sum(map(len, got))} tokens equal, {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
