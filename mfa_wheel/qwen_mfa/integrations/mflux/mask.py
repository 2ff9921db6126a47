"""Qwen-Image's text mask in mflux: converted once for each mask, not once for each block.

mflux 0.24 converts the text mask anew in every block, and asks the device each time whether
anything is masked at all, which waits. Here the conversion (mflux's own) is remembered by the
mask's contents, and its result is evaluated: so attention can look at it without waiting.

mflux's result is an additive float32 mask, which MLX rejects for bfloat16 inputs: prompts of
different lengths in one batch fail there, in the precision that mflux uses. The same mask as
booleans fits every dtype, so that is what is handed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from qwen_mfa import forks, telemetry
from qwen_mfa.integrations.mflux.tracing import Opaque
from qwen_mfa.transforms.padding import MIN_HIDING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_REMEMBERED = 16  # positive and negative prompts of a few images


PART = "text mask"


def remembering(original: Any, *, shared: bool = True) -> staticmethod[..., Any]:
    """Return a static method that remembers the results of ``original``, a static method too.

    Unless ``shared``, it calls ``original`` for each block.
    """
    convert: Callable[[mx.array | None, int, int], mx.array | None] = original.__func__
    results: dict[tuple[object, ...], mx.array | None] = {}
    lock = forks.lock()

    def converted(mask: Any, joint_seq_len: int, txt_seq_len: int) -> Any:
        if isinstance(mask, Opaque):  # a block is being traced: attention gets it as it is
            return mask
        key = _key(mask, joint_seq_len, txt_seq_len) if shared else None
        if key is None:
            return convert(mask, joint_seq_len, txt_seq_len)
        with lock:
            if key in results:
                telemetry.count_part(PART, "remembered")
                return results[key]
        telemetry.count_part(PART, "converted")
        result = convert(mask, joint_seq_len, txt_seq_len)
        if result is not None:
            result = _as_bool(result)
            mx.eval(result)
        with lock:
            if len(results) >= MAX_REMEMBERED:
                results.pop(next(iter(results)))
            results[key] = result
        return result

    return staticmethod(converted)


def hides_nothing(mask: Any) -> bool:
    """Whether ``mask`` is boolean and all true; false for what cannot be looked at."""
    if not isinstance(mask, mx.array) or mask.dtype != mx.bool_:
        return False
    key = _key(mask)
    return key is not None and 0 not in cast("bytes", key[2])


def _as_bool(additive: mx.array) -> mx.array:
    """Return where ``additive`` lets keys through, or itself if it does more than hide keys."""
    visible = additive == 0
    only_hides = mx.all(visible | (additive <= MIN_HIDING)).item()
    return visible if only_hides else additive


def _key(mask: mx.array | None, *lengths: int) -> tuple[object, ...] | None:
    """Return what the result depends on; ``None`` when the contents cannot be looked at."""
    if not isinstance(mask, mx.array):
        return None
    try:
        data = bytes(memoryview(cast("Any", mask)))
    except (RuntimeError, ValueError):  # traced, or of another thread
        return None
    return (mask.dtype, mask.shape, data, *lengths)
