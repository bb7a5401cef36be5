"""Trains baichuan-m1-wordnet and writes the whole model folder: one command, fixed seed.

usage: python train.py [--out ../baichuan-m1-wordnet] [--steps N] [--seed N]

On a CUDA GPU the forward runs in bf16 and is compiled; on a CPU it runs in f32 (overnight, for all steps).
What is measured afterwards is always the checkpoint itself: weights rounded to bf16, read back from the
file, and run in f32.
"""

import argparse
import math
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F

import checkpoint
import corpus
import dialogue
import tokenizer
import wordnet
from model import BaichuanM1, Config

OUT = Path(__file__).parent.parent / "baichuan-m1-wordnet"


@dataclass(frozen=True)
class Recipe:
    """The choices of the optimisation; a batch is `rows` × corpus.ROW_TOKENS tokens."""

    steps: int = 3000
    rows: int = 32
    peak_rate: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 1.0
    label_smoothing: float = 0.02
    clip_norm: float = 1.0
    seed: int = 1

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to zero."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.peak_rate * 0.5 * (1 + math.cos(math.pi * done))


def prefetch(source: Iterator[corpus.Rows], depth: int = 8) -> Iterator[corpus.Rows]:
    """Packs the next batches in a thread while the device works on this one."""
    ready: queue.Queue[corpus.Rows] = queue.Queue(depth)

    def fill() -> None:
        for rows in source:
            ready.put(rows)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get()


def train(config: Config, recipe: Recipe, encode: corpus.Encode, terms: list[wordnet.Term], device: str) -> BaichuanM1:
    """The trained model, on `device`."""
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    model = BaichuanM1(config).to(device)
    step_forward = torch.compile(model) if device == "cuda" else model
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True)
    source = prefetch(corpus.batches(encode, terms, recipe.rows, recipe.seed))
    started = time.monotonic()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        rows = next(source)
        ids, labels, numbers, positions = (
            torch.from_numpy(a).to(device, non_blocking=True)
            for a in (rows.ids, rows.labels, rows.documents, rows.positions)
        )
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = step_forward(ids, numbers, positions)
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=corpus.IGNORE, label_smoothing=recipe.label_smoothing
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 250 == 0 or step == recipe.steps - 1:
            print(f"step {step:5} loss {loss.item():.4f} {time.monotonic() - started:6.1f} s", flush=True)
    return model


def tokenizer_texts(terms: list[wordnet.Term]) -> list[str]:
    """What the tokenizer learns its pieces from: nothing of the held-out terms."""
    texts = [f"{t.name}: {t.definition}" for t in terms] + [corpus.question(t.name) for t in terms]
    return texts + [side for line in dialogue.lines() for side in line] + dialogue.SYSTEM_PROMPTS


def encoder(folder: Path) -> Callable[[str], list[int]]:
    """Text → ids by the folder's tokenizer.model, remembering the answers."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lru_cache(maxsize=300_000)(pieces.encode)


def main() -> None:
    """Reads the command line and does the whole work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not wordnet.TERMS.exists():
        wordnet.write()
    terms = wordnet.read()
    trained = [t for t in terms if not t.held_out]
    tokenizer.train(tokenizer_texts(trained), args.out)
    encode = encoder(args.out)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(steps=args.steps, seed=args.seed)
    config = Config()
    started = time.monotonic()
    model = train(config, recipe, encode, trained, device)
    run = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started),
        "recipe": vars(recipe),
    }
    checkpoint.write(model, args.out)
    checkpoint.measure(args.out, encode, terms, run)


if __name__ == "__main__":
    main()
