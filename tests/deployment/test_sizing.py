"""The sizing table of docs/OPERATIONS.md, computed again from the model's shape."""

import re
import unittest

from places import ROOT

GIB = 1 << 30
HIDDEN, INNER, VOCABULARY, WINDOW = 5120, 17408, 133120, 8192
# Half of 40 layers each: K/V heads × head dimension.
GLOBAL, SLIDING = 2 * 256, 8 * 128
LAYERS = sum(20 * ((HIDDEN + 2 * kv) * HIDDEN + HIDDEN**2 + 3 * INNER * HIDDEN) for kv in (GLOBAL, SLIDING))
TABLE = VOCABULARY * HIDDEN
LENGTHS = (2048, 8192, 32768)


def weight_bytes(bits):
    return (LAYERS + TABLE) * bits / 8 + TABLE * 2


def sequence_bytes(tokens):
    per_token = [20 * 2 * kv * 2 for kv in (GLOBAL, SLIDING)]
    convolution = 20 * 2 * (GLOBAL + SLIDING) * 2
    return per_token[0] * tokens + per_token[1] * min(tokens, WINDOW) + convolution


class Sizing(unittest.TestCase):
    def test_every_row_is_the_arithmetic(self):
        page = (ROOT / "docs/OPERATIONS.md").read_text()
        rows = re.findall(r"^\| (\d+ GB \(\w+\)) \| ([\d.]+) GiB \| (bf16|[\d.]+ bit) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
        self.assertEqual(len(rows), 12)
        for card, memory, weights, room, *counts in rows:
            bits = 16 if weights == "bf16" else float(weights.split()[0])
            left = 0.92 * float(memory) * GIB - weight_bytes(bits) - 1.5 * GIB
            expected = ("does not fit", ["–"] * 3)
            if left > 0:
                expected = (f"{left / GIB:.1f} GiB", [str(int(left // sequence_bytes(length))) for length in LENGTHS])
            self.assertEqual((room, counts), expected, f"{card}, {weights}")

    def test_the_figures_of_the_text_are_the_models(self):
        self.assertEqual(sequence_bytes(1) - sequence_bytes(0), 120 * 1024)
        self.assertEqual(sequence_bytes(WINDOW + 1) - sequence_bytes(WINDOW), 40 * 1024)
        self.assertEqual(sequence_bytes(0), 120 * 1024)
        self.assertEqual(f"{weight_bytes(16) / GIB:.1f} {weight_bytes(8.5) / GIB:.1f} {weight_bytes(4.5) / GIB:.1f}", "27.0 14.9 8.5")


if __name__ == "__main__":
    unittest.main()
