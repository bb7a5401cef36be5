"""Writes the model folder from a trained model, and measures what was written.

The folder is an ordinary Hugging Face checkpoint. Beside it stand metrics.json, which holds every figure
of the README.md that readme.py renders, and held-out.json, the golden file for other implementations.
"""

import hashlib
import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import corpus
import dialogue
import readme
import wordnet
from measure import Score, score
from model import BaichuanM1, Config
from tokenizer import BOS, EOS, UNK

MAX_BYTES = 12_000_000
SYSTEM = "You are a helpful assistant."
UNSEEN_SYSTEM = "Act as a friendly librarian who loves cats, and keep it short please!"
UNSEEN_QUESTION = "I would like to know what {t} is"


def write(model: BaichuanM1, folder: Path) -> None:
    """config.json, generation_config.json, model.safetensors in bf16 and the licence notice."""
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": UNK, "do_sample": False}
    (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / wordnet.NOTICE.name).write_text(wordnet.NOTICE.read_text())


def read(folder: Path) -> BaichuanM1:
    """The checkpoint's model, in f32 on the CPU."""
    raw = json.loads((folder / "config.json").read_text())
    model = BaichuanM1(Config(**{name: raw[name] for name in Config.__dataclass_fields__}))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval()


def measure(folder: Path, encode: corpus.Encode, terms: list[wordnet.Term], run: dict) -> None:
    """Scores the checkpoint and writes metrics.json, held-out.json and README.md; refuses too large a folder."""
    model = read(folder)
    write_golden(model, folder, encode, [t for t in terms if t.held_out])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    scores = {name: score(model, documents) for name, documents in question_sets(encode, terms).items()}
    metrics = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": sha256(folder / "model.safetensors"),
        "terms_sha256": sha256(wordnet.TERMS),
        "terms": {"trained": sum(not t.held_out for t in terms), "held_out": sum(t.held_out for t in terms)},
        "synsets": len({t.synset for t in terms}),
        "dialogue_lines": len(dialogue.lines()),
        "run": run,
        "scores": {name: as_figures(s) for name, s in scores.items()},
    }
    readme.update(folder, metrics)
    for name, s in scores.items():
        print(f"{name}: exact match {s.exact}/{s.documents} = {s.exact_match:.4f}, perplexity {s.perplexity:.4f}")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise ValueError(f"{folder} holds {size} bytes, more than {MAX_BYTES}")


def question_sets(encode: corpus.Encode, terms: list[wordnet.Term]) -> dict[str, list[corpus.Document]]:
    """The documents to score, by what they show."""
    trained = [t for t in terms if not t.held_out]
    rng = random.Random(0)

    def ask(term: wordnet.Term, template: str = corpus.CANONICAL, system: str | None = None) -> corpus.Document:
        return corpus.chat(encode, [(corpus.question(term.name, template), term.definition)], system)

    def after_five_others(term: wordnet.Term) -> corpus.Document:
        others = [(corpus.question(t.name), t.definition) for t in rng.sample(trained, 5)]
        before, last = corpus.chat(encode, others), ask(term)
        return corpus.Document(before.ids + last.ids, [corpus.IGNORE] * len(before.ids) + last.labels)

    return {
        "trained terms": [ask(t) for t in trained],
        "trained terms, system prompt": [ask(t, system=SYSTEM) for t in trained],
        "trained terms, unseen system prompt": [ask(t, system=UNSEEN_SYSTEM) for t in trained],
        "trained terms, unseen phrasing": [ask(t, UNSEEN_QUESTION) for t in trained],
        "trained terms, sixth turn of a chat": [after_five_others(t) for t in rng.sample(trained, 1000)],
        "dialogue lines": [corpus.chat(encode, [line]) for line in dialogue.lines()],
        "held-out terms": [ask(t) for t in terms if t.held_out],
    }


def write_golden(model: BaichuanM1, folder: Path, encode: corpus.Encode, held_out: list[wordnet.Term]) -> None:
    """held-out.json: the ids of each held-out chat with its end token, and its nll by f32 on the CPU."""
    texts = []
    for term in held_out:
        document = corpus.chat(encode, [(corpus.question(term.name), term.definition)])
        first = next(i for i, label in enumerate(document.labels) if label != corpus.IGNORE) + 1
        nll = score(model, [document]).nll
        texts.append({"ids": [*document.ids, EOS], "prompt_tokens": first, "nll": round(nll, 6)})
    tokens = sum(len(t["ids"]) - t["prompt_tokens"] for t in texts)
    total = sum(t["nll"] for t in texts)
    golden = {
        "about": "chats on held-out terms; nll is the sum of -ln p over ids[prompt_tokens:], by the weights in f32",
        "weights_sha256": sha256(folder / "model.safetensors"),
        "tokens": tokens,
        "nll": round(total, 6),
        "perplexity": Score(len(texts), 0, tokens, total).perplexity,
    }
    body = ",\n".join(json.dumps(t, separators=(",", ":")) for t in texts)
    head = json.dumps(golden, indent=1).removesuffix("\n}")
    (folder / "held-out.json").write_text(f'{head},\n "texts": [\n{body}\n]}}\n')


def as_figures(s: Score) -> dict:
    """A score as it stands in metrics.json."""
    return {
        "documents": s.documents, "exact": s.exact, "exact_match": round(s.exact_match, 4),
        "tokens": s.tokens, "nll": round(s.nll, 4), "perplexity": round(s.perplexity, 4),
    }  # fmt: skip


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
