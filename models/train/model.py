"""Baichuan-M1 in PyTorch, for training: whole sequences, packed documents, no cache.

Parameter names are those of the released checkpoints, so a state dict is a checkpoint. The shapes and
the order of operations follow the paper (arXiv 2502.12671) and are checked against mlx-lm by
check_mlx.py. What makes it unlike other decoders:

- K and V of each token are mixed with those of its `conv_window - 1` predecessors, per KV head, before RoPE;
- sliding layers have their own numbers of heads, and see `sliding_window` keys, the query's own included;
- the rows of lm_head are L2-normalised before use.
"""

from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_EPS = 1e-7


@dataclass(frozen=True)
class Config:
    """The fields of config.json that the forward pass reads."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 1
    num_swa_attention_heads: int = 8
    num_swa_key_value_heads: int = 4
    sliding_window: int = 64
    sliding_window_layers: list[int] = field(default_factory=lambda: [1, 3])
    conv_window: int = 2
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def to_json(self) -> dict:
        """The whole config.json, with the fields that only loaders read."""
        return {
            "architectures": ["BaichuanM1ForCausalLM"], "model_type": "baichuan_m1", "torch_dtype": "bfloat16",
            **asdict(self), "hidden_act": "silu", "initializer_range": 0.02, "tie_word_embeddings": False,
            "max_position_embeddings": 2048, "model_max_length": 2048, "attention_dropout": 0.0, "use_cache": True,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        }  # fmt: skip


class RMSNorm(nn.Module):
    """Scales each vector to unit mean square, in f32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def mix_with_predecessors(x: Tensor, taps: Tensor, positions: Tensor) -> Tensor:
    """`out[t] = Σ_j taps[h, j] · x[t - (c - 1) + j]`, zeros before a document's first token.

    `x`: `[batch, time, kv_heads, head_dim]`, before RoPE. `taps`: `[1, 1, kv_heads, 1, c]`.
    """
    weights = taps.reshape(taps.shape[2], taps.shape[4])
    out = x * weights[:, -1, None]
    for back in range(1, weights.shape[1]):
        shifted = F.pad(x, (0, 0, 0, 0, back, 0))[:, : x.shape[1]]
        inside = (positions >= back)[:, :, None, None]
        out = out + torch.where(inside, shifted, 0.0) * weights[:, -1 - back, None]
    return out


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotates the two halves of each head against each other by the absolute position, in f32."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (positions[:, :, None].float() * frequencies)[:, :, None, :]
    left, right = x.float().split(half, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """One layer's attention, global or sliding by its number."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.is_sliding = layer in config.sliding_window_layers
        sliding = (config.num_swa_attention_heads, config.num_swa_key_value_heads)
        full = (config.num_attention_heads, config.num_key_value_heads)
        self.heads, self.kv_heads = sliding if self.is_sliding else full
        self.head_dim = config.hidden_size // self.heads
        self.theta = config.rope_theta
        self.split = [config.hidden_size, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        self.W_pack = nn.Linear(config.hidden_size, sum(self.split), bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        taps = torch.cat((torch.zeros(config.conv_window - 1), torch.ones(1)))
        self.conv_k = nn.Parameter(taps.repeat(1, 1, self.kv_heads, 1, 1))
        self.conv_v = nn.Parameter(taps.repeat(1, 1, self.kv_heads, 1, 1))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        batch, time, hidden = x.shape
        q, k, v = self.W_pack(x).split(self.split, dim=-1)
        k = mix_with_predecessors(k.view(batch, time, self.kv_heads, -1), self.conv_k, positions)
        v = mix_with_predecessors(v.view(batch, time, self.kv_heads, -1), self.conv_v, positions)
        q = rope(q.view(batch, time, self.heads, -1), positions, self.theta)
        k = rope(k, positions, self.theta)
        groups = self.heads // self.kv_heads
        k, v = (t.to(q.dtype).transpose(1, 2).repeat_interleave(groups, dim=1) for t in (k, v))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, hidden))


class Mlp(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each added to the normalised stream."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Everything up to the final norm."""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids: Tensor, positions: Tensor, full: Tensor, sliding: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, positions, sliding if layer.self_attn.is_sliding else full)
        return self.norm(x)


class BaichuanM1(nn.Module):
    """The causal language model over packed rows."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.5 if "embed" in name else parameter.shape[1] ** -0.5
                scale = (2 * config.num_hidden_layers) ** -0.5 if is_residual else 1.0
                nn.init.normal_(parameter, std=std * scale)

    def hidden(self, ids: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
        """Vectors after the final norm, `[batch, time, hidden]`; a token sees its own document only."""
        same = documents[:, :, None] == documents[:, None, :]
        time = torch.arange(ids.shape[1], device=ids.device)
        distance = time[:, None] - time[None, :]
        full = (same & (distance >= 0))[:, None]
        sliding = full & (distance < self.config.sliding_window)
        return self.model(ids, positions, full, sliding)

    def forward(self, ids: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
        """Logits in f32, `[batch, time, vocab]`."""
        hidden = self.hidden(ids, documents, positions)
        with torch.autocast(hidden.device.type, enabled=False):
            head = self.lm_head.weight.float()
            return F.linear(hidden, head / (head.norm(dim=-1, keepdim=True) + HEAD_EPS))
