"""One call of the public function where everything below it is there: ``attend.py TOKENS HEADS``.

The environment names the library, the stand-in of Metal that executes, and the folder of the
stand-in PyObjC. Prints a line of JSON: the largest error against float64, and the seconds. The
shape is Qwen-Image's: batch 1, heads of 128, q, k and v as hosts have them, a quarter of the keys
masked.
"""

from __future__ import annotations

import json
import sys
import time

import Metal
import mlx.core as mx

import qwen_mfa
from qwen_mfa.problem import Problem
from qwen_mfa.validation.inputs import draw
from qwen_mfa.validation.reference import attention_float64, distance


def main(tokens: int, heads: int) -> None:
    """Attend, and compare with float64."""
    problem = Problem(
        batch=1, heads_q=heads, heads_kv=heads, seq_q=tokens, seq_kv=tokens, head_dim=128,
        value_dim=128, dtype="bfloat16", mask="bool", mask_shape=(1, 1, 1, tokens),
    )  # fmt: skip
    call = draw(problem).call
    waits, start = Metal.library.standin_waits(), time.perf_counter()
    out = qwen_mfa.scaled_dot_product_attention(
        call.q, call.k, call.v, scale=call.scale, mask=call.mask
    )
    mx.eval(out)
    seconds = time.perf_counter() - start
    answer = {
        "error": distance(out, attention_float64(call)),
        "seconds": seconds,
        "waits": Metal.library.standin_waits() - waits,
        "misuses": Metal.library.standin_misuses().decode().splitlines(),
    }
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
