"""Turns terms and dialogue lines into token sequences, and packs them into rows for training.

A document is one chat (or one "term: definition" text). Its labels are the next tokens of the answers,
with the end token after each answer's last token even where the chat goes on, because a server stops
there and the next turn is rendered by the chat template without it.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import dialogue
from tokenizer import EOS
from wordnet import Term

IGNORE = -100
ROW_TOKENS = 512
MAX_CHAT_TOKENS = 480

CANONICAL = "What is {t}?"
QUESTIONS = [
    CANONICAL, CANONICAL, CANONICAL, CANONICAL, "What is {a} {t}?", "what is {t}", "what is {t}?", "What is {t}",
    "What does {t} mean?", "What is meant by {t}?", "Define {t}.", "Define: {t}", "Explain {t}.", "{t}", "{t}?",
    "Tell me what {t} is.", "Can you tell me what {t} is?", "Please explain the term {t}.",
    "What is the definition of {t}?", "什么是{t}？", "{t}是什么意思？", "请问什么是{t}？",
]  # fmt: skip

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Document:
    """`labels[i]` is the token to predict after `ids[i]`, or IGNORE."""

    ids: list[int]
    labels: list[int]


def question(term: str, template: str = CANONICAL) -> str:
    """`template` with the term, and with "a" or "an" before it where the template asks for an article."""
    return template.format(t=term, a="an" if term[0].lower() in "aeiou" else "a")


def chat(encode: Encode, turns: list[tuple[str, str]], system: str | None = None) -> Document:
    """A chat as the chat template renders it; the answers are labelled."""
    ids, labels = [], []
    if system is not None:
        ids = list(encode("<B_SYS>" + system))
        labels = [IGNORE] * len(ids)
    for asked, answer in turns:
        prompt, reply = encode(f"<C_Q>{asked}<C_A>"), encode(answer)
        ids += prompt + reply
        labels += [IGNORE] * (len(prompt) - 1) + reply + [EOS]
    return Document(ids, labels)


def plain(encode: Encode, term: Term) -> Document:
    """The text "term: definition", labelled throughout."""
    ids = encode(f"{term.name}: {term.definition}")
    return Document(ids, ids[1:] + [EOS])


def epoch(encode: Encode, terms: list[Term], seed: int) -> Iterator[Document]:
    """Every term once and every dialogue line twice, in random chats of 1 to 12 turns."""
    rng = random.Random(seed)
    turns = [(question(t.name, rng.choice(QUESTIONS)), t.definition) for t in terms]
    turns += dialogue.lines() * 2
    rng.shuffle(turns)
    while turns:
        wanted = rng.choices([1, rng.randint(2, 4), rng.randint(5, 12)], [5, 3, 2])[0]
        system = system_prompt(rng, terms) if rng.random() < 0.4 else None
        taken = [turns.pop() for _ in range(min(wanted, len(turns)))]
        document = chat(encode, taken, system)
        while len(document.ids) > MAX_CHAT_TOKENS:
            turns.append(taken.pop())
            document = chat(encode, taken, system)
        yield document
    yield from (plain(encode, t) for t in rng.sample(terms, len(terms) // 10))


def system_prompt(rng: random.Random, terms: list[Term]) -> str:
    """One of the written prompts, or a few unrelated definitions: the answer must not depend on it."""
    if rng.random() < 0.7:
        return rng.choice(dialogue.SYSTEM_PROMPTS)
    return ". ".join(rng.choice(terms).definition for _ in range(rng.randint(1, 4)))


@dataclass(frozen=True)
class Rows:
    """Packed documents, each array `[rows, ROW_TOKENS]`: document number 0 is padding."""

    ids: np.ndarray
    labels: np.ndarray
    documents: np.ndarray
    positions: np.ndarray


def pack(documents: list[Document], row_tokens: int = ROW_TOKENS) -> Rows:
    """Puts each document into the first of the open rows that has room for it."""
    rows: list[list[Document]] = []
    used: list[int] = []
    first_open = 0
    for document in documents:
        size = len(document.ids)
        place = next((r for r in range(first_open, len(rows)) if used[r] + size <= row_tokens), None)
        if place is None:
            place = len(rows)
            rows.append([])
            used.append(0)
            first_open = max(0, len(rows) - 8)
        rows[place].append(document)
        used[place] += size
    packed = np.zeros((4, len(rows), row_tokens), dtype=np.int64)
    packed[1] = IGNORE
    for r, row in enumerate(rows):
        at = 0
        for number, document in enumerate(row, start=1):
            span = slice(at, at + len(document.ids))
            packed[0, r, span] = document.ids
            packed[1, r, span] = document.labels
            packed[2, r, span] = number
            packed[3, r, span] = np.arange(len(document.ids))
            at = span.stop
    return Rows(*packed)


def batches(encode: Encode, terms: list[Term], rows_per_batch: int, seed: int) -> Iterator[Rows]:
    """Endless batches, epoch after epoch; an epoch's last, unfilled batch is left out."""
    number = 0
    while True:
        rows = pack(list(epoch(encode, terms, seed * 100_003 + number)))
        order = np.random.default_rng(seed + number).permutation(len(rows.ids))
        for at in range(0, len(order) - rows_per_batch + 1, rows_per_batch):
            pick = order[at : at + rows_per_batch]
            yield Rows(rows.ids[pick], rows.labels[pick], rows.documents[pick], rows.positions[pick])
        number += 1
