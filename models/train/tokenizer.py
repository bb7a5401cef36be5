"""Trains the SentencePiece model and writes the equal tokenizer.json, tokenizer_config.json beside it.

The two files must give the same ids for any text: `check_equal` proves it on fuzzed text of every kind
(words, Chinese, emoji, control characters, role tokens, broken spacing). There is no dummy prefix, no
normalisation and no whitespace squeezing, so decoding gives back exactly what was encoded.
"""

import io
import json
import random
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

VOCAB_SIZE = 4096
UNK, BOS, EOS = 0, 1, 2
ROLES = ["<B_SYS>", "<B_USYS>", "<C_Q>", "<C_A>", "<B_FUNC>", "<B_CODE>"]
MARKERS = ["<s>", "</s>", *ROLES]
SPACE = "\u2581"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<B_SYS>' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<C_Q>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<C_A>' + message['content'] }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<C_A>' }}{% endif %}"
)


def train(texts: list[str], folder: Path) -> None:
    """Writes tokenizer.model, tokenizer.json and tokenizer_config.json, and checks that the two agree."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe",
        vocab_size=VOCAB_SIZE, byte_fallback=True, character_coverage=0.9985,
        unk_id=UNK, bos_id=BOS, eos_id=EOS, pad_id=-1, user_defined_symbols=MARKERS,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    to_json(folder / "tokenizer.model").save(str(folder / "tokenizer.json"), pretty=False)
    declared = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {str(BOS + i): {"content": marker, **declared} for i, marker in enumerate(MARKERS)},
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": 2048, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    check_equal(folder, texts)


def to_json(model: Path) -> Tokenizer:
    """The same BPE as a `tokenizers` object: a merge for every piece that two shorter pieces make."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    normal = proto.SentencePiece.Type.NORMAL
    scores = {p.piece: p.score for p in proto.pieces if p.type == normal}
    merges = []
    for piece, score in scores.items():
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(left, right) for left, right in splits if left in scores and right in scores]
        merges += [(-score, ids[left], ids[right], (left, right)) for left, right in pairs]
    bpe = models.BPE(ids, [pair for *_, pair in sorted(merges)], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in MARKERS])
    return tokenizer


def check_equal(folder: Path, texts: list[str], rounds: int = 20_000) -> None:
    """Encodes `rounds` made-up strings and every text by both files; raises at the first difference."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = [fuzz(random.Random(seed), texts) for seed in range(rounds)] + texts
    for text in cases:
        left, right = pieces.encode(text), fast.encode(text, add_special_tokens=False).ids
        if left != right:
            raise ValueError(f"tokenizer.model and tokenizer.json differ on {text!r}: {left} and {right}")
        if fast.decode(right, skip_special_tokens=False) != text:
            raise ValueError(f"decoding does not give back {text!r}")
    print(f"tokenizer.model and tokenizer.json agree on {len(cases)} texts, and both decode to what was encoded")


def fuzz(rng: random.Random, texts: list[str]) -> str:
    """A string of random fragments of the training texts and of what no training text holds."""
    makers = [
        lambda: rng.choice(texts)[: rng.randrange(40)],
        lambda: rng.choice(MARKERS),
        lambda: " " * rng.randrange(1, 5),
        lambda: rng.choice(["\t", "\n", "\r\n", "\x00", "\x1b", "\x7f", "\u0085", "\u200b", "\ufeff", "\u3000"]),
        lambda: "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(rng.randrange(1, 6))),
        lambda: "".join(chr(rng.randrange(0x1F300, 0x1FAFF)) for _ in range(rng.randrange(1, 4))),
        lambda: "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 12))),
        lambda: rng.choice(["<C_", "<B_SYS", "C_Q>", "<0x0A>", "<unk>", "<", "e\u0301", "ÅÄß", "👩\u200d⚕️", "İ", "ﬁ"]),
    ]
    return "".join(rng.choice(makers)() for _ in range(rng.randrange(1, 9)))
