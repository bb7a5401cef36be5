"""Tiny random checkpoints of other families, and what `transformers` makes of them: the goldens of mistralrs-backend.

usage: families.py FOLDER          writes FOLDER/{qwen2,qwen3,qwen3-embedding}, each a checkpoint with its golden.json

Needs torch 2.6, transformers 4.57 and tokenizers (PyPI). Everything is seeded: the same versions give the same files.
Computed on a CPU in float32. Weights are drawn wide enough that the likeliest token leads clearly, and a golden whose
lead is ever less than LEAD is refused, so that the comparison does not hang on the last bit of a sum.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 264
END, OPEN, CLOSE = 256, 257, 258
LEAD = 0.003
TOKENS = 16
PROMPTS = {
    "one token": [72],
    "a word": [102, 101, 118, 101, 114],
    "a sentence": list(b"The patient has had a fever for three days."),
    "longer than a block": [(i * 7 + 3) % 256 for i in range(150)],
    "markup": [257, 117, 115, 101, 114, 10, 104, 105, 258, 10],
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=END,
    attn_implementation="eager",
)


def tokenizer(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: byte_of()[c])
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    built.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE, "tokenizer_class": "Qwen2Tokenizer"}
    write(folder / "tokenizer_config.json", settings)


def byte_of():
    """The byte that each character of a byte-level alphabet stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def write(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def draw(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.2 * torch.randn_like(weight))
            else:
                width = 1.0 if "embed" in name else 1.4 / weight.shape[-1] ** 0.5
                weight.copy_(width * torch.randn_like(weight))
            # Stored in half the bytes without a loss; both sides compute in float32.
            weight.copy_(weight.bfloat16().float())
    return model.float().eval()


def config_of(model, kind):
    kept = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
            "hidden_act", "eos_token_id"]
    config = {key: getattr(model.config, key) for key in kept}
    extra = {"head_dim": model.config.head_dim, "attention_bias": False} if kind == "qwen3" else {}
    return {
        "architectures": [type(model).__name__],
        "model_type": kind,
        "torch_dtype": "bfloat16",
        # As published checkpoints have it: a window is named, and not in use.
        "use_sliding_window": False,
        "sliding_window": 64 if kind == "qwen2" else None,
        "max_window_layers": 2,
        **config,
        **extra,
    }


@torch.no_grad()
def greedy(model, prompt):
    tokens, logprobs = list(prompt), []
    for _ in range(TOKENS):
        logits = model(torch.tensor([tokens])).logits[0, -1]
        first, second = torch.topk(logits, 2).values.tolist()
        if first - second < LEAD:
            return None
        logprobs.append(round(torch.log_softmax(logits, -1).max().item(), 5))
        tokens.append(int(logits.argmax()))
    return {"prompt": list(prompt), "tokens": tokens[len(prompt):], "logprobs": logprobs}


def generator(folder, kind, model_of):
    for seed in range(1000):
        model = draw(model_of(), seed)
        golden = {name: greedy(model, prompt) for name, prompt in PROMPTS.items()}
        varied = all(g and len(set(g["tokens"])) > 3 for g in golden.values())
        if varied:
            break
    else:
        sys.exit(f"{kind}: no seed gives clear leads")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(folder)
    write(folder / "config.json", config_of(model, kind))
    save_file({name: weight.bfloat16().contiguous() for name, weight in model.state_dict().items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    write(folder / "golden.json", golden)
    print(f"{folder}: seed {seed}")
    return model


@torch.no_grad()
def embedder(folder, model):
    """Qwen3-Embedding: the same model without its head, last token's state, as sentence-transformers lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(folder)
    write(folder / "config.json", config_of(model, "qwen3"))
    weights = {name.removeprefix("model."): weight.bfloat16().contiguous()
               for name, weight in model.state_dict().items() if name.startswith("model.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ])
    (folder / "1_Pooling").mkdir(exist_ok=True)
    off = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens"]
    write(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": model.config.hidden_size,
        **{f"pooling_mode_{mode}": False for mode in off},
        "pooling_mode_lasttoken": True,
        "include_prompt": True,
    })
    golden = {}
    for name, prompt in PROMPTS.items():
        if len(prompt) > 1:
            hidden = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
            golden[name] = {"prompt": prompt, "values": [round(v, 6) for v in hidden.tolist()]}
    write(folder / "golden.json", golden)


def main():
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    generator(root / "qwen2", "qwen2", lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, use_sliding_window=False)))
    qwen3 = generator(root / "qwen3", "qwen3", lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)))
    embedder(root / "qwen3-embedding", qwen3)


if __name__ == "__main__":
    main()
