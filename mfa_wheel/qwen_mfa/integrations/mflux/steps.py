"""Qwen-Image 2.1 in mflux: whether a denoising step runs as a compiled graph or eagerly.

mflux puts each step into ``mx.compile``. A native kernel cannot run inside (it needs evaluated
inputs), so there attention is MLX's own. Run eagerly, the step can use the kernel, but loses the
fusion of element-wise operations. What that costs depends on the device: on the CPU nothing that
could be measured (see docs/mflux.md), so ``"auto"`` runs a step eagerly exactly there, and only if
a native kernel takes its attention. On a GPU ``"auto"`` leaves the graph alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import telemetry
from qwen_mfa.kernels import mlx
from qwen_mfa.problem import DTYPES, Problem
from qwen_mfa.selection import choose

if TYPE_CHECKING:
    from collections.abc import Callable

PART = "Qwen-Image 2.1's steps"


class Step:
    """Stands in for an attribute of `Qwen21Transformer` that holds a compiled step.

    As a data descriptor on the class it is asked before the instance: it answers with a function
    that chooses for each call. What mflux stores (``None``, to forget a graph) stays in the
    instance, where mflux finds it again when the integration is switched off.
    """

    def __init__(self, slot: str, method: str, policy: str) -> None:
        self.slot = slot
        self.method = method
        self.policy = policy

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Return the step of ``instance``, never ``None``: mflux need not compile one."""
        if instance is None:
            return self

        def step(*args: Any) -> mx.array:
            eager = getattr(instance, self.method)
            is_eager = self._is_eager(instance, args)
            telemetry.count_part(PART, "eager" if is_eager else "compiled")
            chosen = eager if is_eager else self._graph(instance, eager)
            result: mx.array = chosen(*args)
            return result

        return step

    def __set__(self, instance: Any, value: Any) -> None:
        """Keep ``value`` where it would be without us."""
        instance.__dict__[self.slot] = value

    def _graph(self, instance: Any, eager: Callable[..., mx.array]) -> Callable[..., mx.array]:
        if instance.__dict__.get(self.slot) is None:
            instance.__dict__[self.slot] = mx.compile(eager)
        graph: Callable[..., mx.array] = instance.__dict__[self.slot]
        return graph

    def _is_eager(self, instance: Any, args: tuple[Any, ...]) -> bool:
        if self.policy != "auto":
            return self.policy == "eager"
        if mx.default_device().type != mx.DeviceType.cpu:
            return False
        problem = _image_attention(instance, args)
        return problem is not None and choose.choose(problem).kernel is not mlx


def _image_attention(instance: Any, args: tuple[Any, ...]) -> Problem | None:
    """Describe the attention of one step: all image queries against text and image."""
    hidden, second, third = args[:3]
    if isinstance(third, list):  # with cached text: (hidden, timestep, keys and values, cos, sin)
        text, dtype = third[0][0].shape[2], third[0][0].dtype
    else:  # (hidden, text, timesteps, cos, sin, mask)
        text, dtype = second.shape[1], second.dtype
    name = DTYPES.get(dtype)
    if name is None:
        return None
    attention = instance.transformer_blocks[0].attn
    tokens = hidden.shape[1]
    return Problem(
        batch=hidden.shape[0],
        heads_q=attention.num_heads,
        heads_kv=attention.num_heads,
        seq_q=tokens,
        seq_kv=text + tokens,
        head_dim=attention.head_dim,
        value_dim=attention.head_dim,
        dtype=name,
    )
