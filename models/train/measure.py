"""Perplexity and exact match of a model over question–answer documents.

Exact match is counted without generating: greedy decoding gives exactly the wanted answer if and only
if, fed that answer, the model ranks each next token of it first, the end token included.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from corpus import IGNORE, ROW_TOKENS, Document, pack
from model import BaichuanM1


@dataclass(frozen=True)
class Score:
    """What a model makes of some documents. `nll` is the sum over `tokens` labels, in nats."""

    documents: int
    exact: int
    tokens: int
    nll: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)

    @property
    def exact_match(self) -> float:
        return self.exact / self.documents


@torch.no_grad()
def score(model: BaichuanM1, documents: list[Document], rows_per_batch: int = 16) -> Score:
    """Scores each document on its own (packing does not let them see each other), in f32."""
    torch.set_float32_matmul_precision("highest")
    device = next(model.parameters()).device
    nll, tokens, exact = 0.0, 0, 0
    rows = pack(documents, min(ROW_TOKENS, sum(len(d.ids) for d in documents)))
    for at in range(0, len(rows.ids), rows_per_batch):
        part = slice(at, at + rows_per_batch)
        ids, labels, numbers, positions = (
            torch.from_numpy(a[part]).to(device) for a in (rows.ids, rows.labels, rows.documents, rows.positions)
        )
        logits = model(ids, numbers, positions)
        wanted = labels != IGNORE
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
        nll += losses.double().sum().item()
        tokens += int(wanted.sum())
        wrong = wanted & (logits.argmax(-1) != labels)
        exact += sum(int(row.max()) - len(row[bad].unique()) for row, bad in zip(numbers, wrong, strict=True))
    return Score(len(documents), exact, tokens, nll)
