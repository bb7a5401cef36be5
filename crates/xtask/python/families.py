"""Tiny random checkpoints of other families, and what `transformers` makes of them: the goldens of mistralrs-backend.

usage: families.py FOLDER
       families.py --wide FOLDER

Writes into FOLDER, each a folder with its golden.json:
  qwen2, qwen3         checkpoints that generate
  qwen3-embedding      one that embeds by the last token
  embedding-gemma      one that embeds by the mean, with layers behind it
  qwen2-lora           an adapter for qwen2, and what the two say together
  qwen2-f32.gguf and so on: the same weights as GGUF, and what those weights say once they are rounded so

With --wide only qwen2 and qwen3, with heads of 64 numbers, the least that mistral.rs's paged attention on GPUs takes:
for tests/gpu/families.py.

Needs torch 2.6, transformers 4.57, tokenizers, peft 0.21 and gguf 0.19 (PyPI; --wide does without the last two).
Everything is seeded: the same versions give the same files. Computed on a CPU in float32. Weights are drawn wide enough
that the likeliest token leads clearly, and a golden whose lead is ever less than LEAD is refused, so that the
comparison does not hang on the last bit of a sum.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WIDE = sys.argv[1] == "--wide"
if not WIDE:
    import gguf
    from gguf import GGMLQuantizationType as Ggml
    from peft import LoraConfig, get_peft_model

VOCABULARY = 264
END, OPEN, CLOSE = 256, 257, 258
LEAD = 0.003
# Where the other side rounds its activations to eight bits too.
LEAD_ROUNDED = 0.2
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
    # transformers 5 keeps rope_theta elsewhere.
    config = {key: getattr(model.config, key, SHAPE.get(key)) for key in kept}
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
def greedy(model, prompt, lead=None):
    """Greedy tokens: none where a lead is less than LEAD, or those in front of the first that is less than `lead`."""
    tokens, logprobs = list(prompt), []
    for _ in range(TOKENS):
        logits = model(torch.tensor([tokens])).logits[0, -1]
        first, second = torch.topk(logits, 2).values.tolist()
        if first - second < (lead or LEAD):
            if lead:
                break
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
    pooling(folder, "lasttoken")
    golden = {}
    for name, prompt in PROMPTS.items():
        if len(prompt) > 1:
            hidden = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
            golden[name] = {"prompt": prompt, "values": [round(v, 6) for v in hidden.tolist()]}
    write(folder / "golden.json", golden)


@torch.no_grad()
def gemma(folder):
    """EmbeddingGemma: a mean over all tokens and two linear layers without biases behind it."""
    # The file's window; the reference makes (window // 2) + 1 of it, to either side.
    shape = dict(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, max_position_embeddings=512, sliding_window=24,
        rms_norm_eps=1e-6, rope_theta=1000000.0, rope_local_base_freq=10000.0, hidden_activation="gelu_pytorch_tanh",
        attention_bias=False, attn_logit_softcapping=None, final_logit_softcapping=None,
        use_bidirectional_attention=True, eos_token_id=END, bos_token_id=None, pad_token_id=END,
    )
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    model = draw(Gemma3TextModel(Gemma3TextConfig(**shape, layer_types=layers, attn_implementation="eager")), 5)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            # These norms multiply by one more than their weight.
            weight.copy_((weight - 1).bfloat16().float())
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(folder)
    write(folder / "config.json", {
        "architectures": ["Gemma3TextModel"], "model_type": "gemma3_text", "torch_dtype": "bfloat16",
        "_sliding_window_pattern": 3, "layer_types": layers, **shape,
    })
    save_file({name: weight.bfloat16().contiguous() for name, weight in model.state_dict().items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    dense = [(2, 32, 64), (3, 64, 32)]
    parts = ["models.Transformer", "models.Pooling", "models.Dense", "models.Dense", "models.Normalize"]
    paths = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    write(folder / "modules.json", [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.{part}"}
        for at, (path, part) in enumerate(zip(paths, parts))
    ])
    pooling(folder, "mean_tokens")
    torch.manual_seed(6)
    heads = []
    for at, inner, outer in dense:
        weight = (torch.randn(outer, inner) / inner**0.5).bfloat16().float()
        heads.append(weight)
        (folder / f"{at}_Dense").mkdir(exist_ok=True)
        write(folder / f"{at}_Dense" / "config.json", {
            "in_features": inner, "out_features": outer, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        })
        save_file({"linear.weight": weight}, folder / f"{at}_Dense" / "model.safetensors", metadata={"format": "pt"})
    golden = {}
    for name, prompt in PROMPTS.items():
        if len(prompt) > 1:
            vector = model(torch.tensor([prompt])).last_hidden_state[0].mean(0)
            for weight in heads:
                vector = weight @ vector
            golden[name] = {"prompt": prompt, "values": [round(v, 6) for v in vector.tolist()]}
    write(folder / "golden.json", golden)


def pooling(folder, on):
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    write(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": 32,
        **{f"pooling_mode_{mode}": mode == on for mode in modes},
        "include_prompt": True,
    })


def adapter(folder, base):
    """A LoRA as PEFT writes it, and the greedy tokens of the base model with it."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
    for seed in range(1000):
        torch.manual_seed(seed)
        model = get_peft_model(copy.deepcopy(base), config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(0.3 * torch.randn_like(weight))
        golden = {name: greedy(model, prompt) for name, prompt in PROMPTS.items()}
        plain = {name: greedy(base, prompt) for name, prompt in PROMPTS.items()}
        if all(golden[name] and golden[name]["tokens"] != plain[name]["tokens"] for name in PROMPTS):
            break
    else:
        sys.exit("adapter: no seed gives clear leads")
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"].sort()
    write(folder / "adapter_config.json", settings)
    write(folder / "golden.json", golden)
    print(f"{folder}: seed {seed}")


def gguf_names(layers):
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    for layer in range(layers):
        names |= {f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in parts.items()}
    return names


@torch.no_grad()
def gguf_of(root, base, kind, number):
    """The weights of `base` as one GGUF file, and what they say once they are rounded as the file has them."""
    folder = root / f"{kind}-{number.name.lower()}.gguf"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(folder)
    write(folder / "config.json", config_of(base, kind))
    writer = gguf.GGUFWriter(str(folder / "model.gguf"), kind)
    config = base.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    rounded, names = {}, gguf_names(config.num_hidden_layers)
    for name, weight in base.state_dict().items():
        module, part = name.rsplit(".", 1)
        as_is = weight.dim() == 1
        stored = gguf.quants.quantize(weight.numpy(), Ggml.F32 if as_is else number)
        rounded[name] = torch.from_numpy(gguf.quants.dequantize(stored, Ggml.F32 if as_is else number).copy())
        writer.add_tensor(f"{names[module]}.{part}", stored, raw_dtype=Ggml.F32 if as_is else number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = copy.deepcopy(base)
    model.load_state_dict(rounded)
    if number == Ggml.F32:
        golden = {name: greedy(model, prompt) for name, prompt in PROMPTS.items()}
    else:
        # Of many prompts, those whose continuation is clear for longest.
        generator = torch.Generator().manual_seed(7)
        drawn = [torch.randint(0, 256, (3 + at % 40,), generator=generator).tolist() for at in range(400)]
        all_of_them = sorted((greedy(model, prompt, LEAD_ROUNDED) for prompt in drawn), key=lambda g: -len(g["tokens"]))
        golden = {f"drawn {at}": entry for at, entry in enumerate(all_of_them[:6])}
    if min(len(entry["tokens"]) for entry in golden.values()) < 4:
        sys.exit(f"{folder}: leads are too small to compare by")
    write(folder / "golden.json", golden)
    print(folder, {name: len(entry["tokens"]) for name, entry in golden.items()})


def main():
    root = Path(sys.argv[-1])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    wider = dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2)
    shape = SHAPE | (wider if WIDE else {})
    width = shape["hidden_size"] // shape["num_attention_heads"]
    qwen2 = generator(root / "qwen2", "qwen2", lambda: Qwen2ForCausalLM(Qwen2Config(**shape, use_sliding_window=False)))
    qwen3 = generator(root / "qwen3", "qwen3", lambda: Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=width)))
    if WIDE:
        return
    embedder(root / "qwen3-embedding", qwen3)
    gemma(root / "embedding-gemma")
    adapter(root / "qwen2-lora", qwen2)
    for number in (Ggml.F32, Ggml.F16, Ggml.Q8_0):
        gguf_of(root, qwen2, "qwen2", number)
    gguf_of(root, qwen3, "qwen3", Ggml.Q8_0)


if __name__ == "__main__":
    main()
