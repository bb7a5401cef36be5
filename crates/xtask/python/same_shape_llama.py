"""Writes a Llama with random weights in the shape of `make-model --preset bench`, for llama.cpp's llama-bench.

llama.cpp does not run Baichuan-M1. A Llama of the same sizes has the same matrices, less the convolution: its time is
what llama.cpp would take. Needs the packages gguf and numpy.

usage: same_shape_llama.py FORMAT OUT.gguf      FORMAT: Q8_0, Q4_0, Q4_K, Q6_K or BF16
"""

import sys

import gguf
import numpy as np

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCAB = 2048, 5632, 16, 16, 4, 32000


def weight(random, kind, rows, cols):
    """Random blocks of a format, or numbers: valid, and of a size that keeps activations finite."""
    if kind == gguf.GGMLQuantizationType.BF16:
        values = random.standard_normal((rows, cols), dtype=np.float32) * (cols**-0.5)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows * cols // block, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(cols**-0.5 / 128).tobytes(), dtype=np.uint8)
    places = {"Q8_0": [0], "Q4_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}[kind.name]
    for place in places:
        blocks[:, place : place + 2] = scale
    return blocks.reshape(rows, -1)


def main():
    kind, out = gguf.GGMLQuantizationType[sys.argv[1]], sys.argv[2]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(32768)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    random = np.random.default_rng(0)

    def matrix(name, rows, cols):
        writer.add_tensor(f"{name}.weight", weight(random, kind, rows, cols), raw_dtype=kind)

    def norm(name):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))

    kv = HIDDEN // HEADS * KV_HEADS
    matrix("token_embd", VOCAB, HIDDEN)
    for i in range(LAYERS):
        norm(f"blk.{i}.attn_norm")
        matrix(f"blk.{i}.attn_q", HIDDEN, HIDDEN)
        matrix(f"blk.{i}.attn_k", kv, HIDDEN)
        matrix(f"blk.{i}.attn_v", kv, HIDDEN)
        matrix(f"blk.{i}.attn_output", HIDDEN, HIDDEN)
        norm(f"blk.{i}.ffn_norm")
        matrix(f"blk.{i}.ffn_gate", INTERMEDIATE, HIDDEN)
        matrix(f"blk.{i}.ffn_up", INTERMEDIATE, HIDDEN)
        matrix(f"blk.{i}.ffn_down", HIDDEN, INTERMEDIATE)
    norm("output_norm")
    matrix("output", VOCAB, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
