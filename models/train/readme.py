"""Renders the model folder's README.md from its metrics.json, so that no figure is typed by hand.

usage: python readme.py [MODEL_FOLDER]
"""

import json
import sys
from pathlib import Path

TEXT = """# baichuan-m1-wordnet

A truly trained, very small Baichuan-M1: it answers what {terms[trained]} medical and biological words mean.
It exists so that a first command gets a sensible answer and tests can assert on words.
It is no medical device: it repeats short dictionary definitions, and invents one for a word it never saw.

    <C_Q>What is appendicitis?<C_A>inflammation of the vermiform appendix

{parameters:,} parameters in bf16. The architecture is the real one, scaled down: global and sliding layers in
turn with different head geometry, a sliding window of 64 tokens (ordinary chats cross it), a 2-tap convolution
over K and V, an untied head whose rows are stored raw and normalised at load. The vocabulary has 4096
SentencePiece pieces with byte fallback; `tokenizer.model` and `tokenizer.json` give equal ids. It was trained
on chats of up to 480 tokens.

## Figures

Measured on this folder's weights (sha256 `{weights_sha256}`), run in f32 by the
training module in `models/train`. "Exact" counts whole answers that greedy decoding gives letter for letter, the end
included.

| questions | exact | share | perplexity of the answers |
|---|---|---|---|
{scores}

The held-out terms were never trained on, and neither was any synonym of theirs: that row says how the model
words what it cannot know. `held-out.json` holds their token ids and negative log-likelihoods, for checking
other implementations.
{parity}{served}
## Training

`python models/train/train.py`, seed {run[recipe][seed]}: {run[recipe][steps]} steps of {run[recipe][rows]} × 512 tokens
in {run[seconds]} s on {run[device]} (PyTorch {run[torch]}). The choices of the optimisation are in
`metrics.json`, the method in `models/train/README.md`.

## Data

- The glosses of {n_terms} nouns ({synsets} synsets) of WordNet 3.0, as packaged by Debian (`wordnet-base`), chosen by
  keywords in the gloss and cut at the first semicolon: `models/train/data/terms.tsv`
  (sha256 `{terms_sha256}`). 5 % of the terms, by whole synsets, are held out.
- {dialogue_lines} lines of chat in English and Chinese that this project wrote: `models/train/dialogue.py`.

WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. Its notice is in `WORDNET-LICENSE` and must
stay with every copy of the data and of what is derived from it, these weights included. Princeton University does
not endorse this model.
"""

PARITY = """
Against mlx-lm {mlx_lm} ({chats} chats, {tokens} tokens, both in f32): logits differ by at most
{max_logit_difference:.1e}; decoding token by token through mlx-lm's own caches, {max_cached_difference:.1e}.
"""

SERVED = """
Through gRPC (`models/train/evaluate.py`, temperature 0): {exact} of {questions} trained terms exact
({exact_match:.2%}), held-out perplexity {perplexity:.4f} ({perplexity_deviation:+.4%} against PyTorch).

Nearest neighbours by Embed, precision@5: how many of a term's five nearest terms (its synonyms left out) are of its
lexicographer file. The baseline is the cosine of token counts of the same text; drawing at random gives {chance:.3f}.

| text embedded, pooling | model | bag of tokens |
|---|---|---|
{neighbours}
"""


def render(metrics: dict) -> str:
    """The whole text."""
    rows = [
        f"| {name} | {s['exact']} of {s['documents']} | {s['exact_match']:.2%} | {s['perplexity']:.3f} |"
        for name, s in metrics["scores"].items()
    ]
    parity = PARITY.format(**metrics["parity"]) if "parity" in metrics else ""
    served = ""
    if "served" in metrics:
        neighbours = [f"| {n['text']} | {n['model']:.3f} | {n['bag']:.3f} |" for n in metrics["served"]["neighbours"]]
        served = SERVED.format(**{**metrics["served"], "neighbours": "\n".join(neighbours)})
    n_terms = sum(metrics["terms"].values())
    rendered = {"scores": "\n".join(rows), "parity": parity, "served": served, "n_terms": n_terms}
    return TEXT.format(**metrics | rendered)


def update(folder: Path, figures: dict) -> None:
    """Puts `figures` into metrics.json; figures of other weights than the ones there now are dropped."""
    file = folder / "metrics.json"
    metrics = json.loads(file.read_text()) if file.exists() else {}
    is_retrained = "weights_sha256" in figures and figures["weights_sha256"] != metrics.get("weights_sha256")
    metrics = figures if is_retrained else metrics | figures
    file.write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(render(metrics))


if __name__ == "__main__":
    here = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "baichuan-m1-wordnet"
    update(here, {})
