"""Checks the written checkpoint against mlx-lm: logits in f32, whole sequences and cached decoding.

usage: python check_mlx.py [MODEL_FOLDER]       (needs mlx[cpu] and mlx-lm; fails above 1e-3)
"""

import json
import random
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import torch
from mlx_lm.models.baichuan_m1 import Model, ModelArgs

import checkpoint
import corpus
import readme
import train
import wordnet

TOLERANCE = 1e-3
CHATS = 8


def load_reference(folder: Path) -> Model:
    """mlx-lm's model with the checkpoint's weights as f32."""
    model = Model(ModelArgs.from_dict(json.loads((folder / "config.json").read_text())))
    weights = {name: t.astype(mx.float32) for name, t in mx.load(str(folder / "model.safetensors")).items()}
    model.load_weights(list(model.sanitize(weights).items()))
    return model


def difference(ours: torch.Tensor, theirs: mx.array) -> float:
    """The largest absolute difference."""
    return (ours - torch.tensor(theirs.tolist())).abs().max().item()


@torch.no_grad()
def main(folder: Path) -> None:
    """Compares chats of several turns, so that the sliding window is crossed, and records the result."""
    mx.set_default_device(mx.cpu)
    ours, theirs = checkpoint.read(folder), load_reference(folder)
    encode = train.encoder(folder)
    rng = random.Random(0)
    whole, cached, tokens = 0.0, 0.0, 0
    terms = wordnet.read()
    for chat in range(CHATS):
        turns = [(corpus.question(t.name), t.definition) for t in rng.sample(terms, 1 + chat)]
        ids = corpus.chat(encode, turns, checkpoint.SYSTEM).ids
        row = torch.tensor([ids])
        logits = ours(row, torch.ones_like(row), torch.arange(len(ids))[None])[0]
        whole = max(whole, difference(logits, theirs(mx.array([ids]))[0]))
        cache = theirs.make_cache()
        for at, token in enumerate(ids):
            step = theirs(mx.array([[token]]), cache)[0, -1]
            cached = max(cached, difference(logits[at], step))
        tokens += len(ids)
    print(f"{CHATS} chats, {tokens} tokens: whole sequences {whole:.2e}, cached decoding {cached:.2e}")
    if max(whole, cached) > TOLERANCE:
        raise SystemExit(f"logits differ by more than {TOLERANCE}")
    figures = {"mlx_lm": version("mlx-lm"), "chats": CHATS, "tokens": tokens}
    readme.update(folder, {"parity": figures | {"max_logit_difference": whole, "max_cached_difference": cached}})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else train.OUT)
