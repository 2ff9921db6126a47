"""Which kernels the user forces or forbids: ``QWEN_MFA_BACKEND``, and ``qwen_mfa.use`` around code.

``NAME`` forces a kernel: it runs whatever was measured, but not unless it is validated. ``-NAME``
forbids one; several may be forbidden: ``-cpu,-mlx-fp16``. ``auto`` is neither.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from qwen_mfa import settings
from qwen_mfa.errors import BackendError
from qwen_mfa.kernels.registry import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)  # by identity: hashed on every call
class Policy:
    """What the user wants.

    Attributes:
        forced: The one kernel to run, or ``None``.
        forbidden: Kernels not to run. MLX's own cannot be forbidden: it is the way out.
        source: Where this was said, for messages.

    """

    forced: str | None = None
    forbidden: frozenset[str] = frozenset()
    source: str = "default"


# What `use` says in this thread or asynchronous task; what the environment says is the session's.
of_context: ContextVar[Policy | None] = ContextVar("policy", default=None)


def of_environment(text: str) -> Policy:
    """Read the value of ``QWEN_MFA_BACKEND``."""
    return parse(text, f"{settings.BACKEND}={text}")


@lru_cache(maxsize=64)
def parse(text: str, source: str) -> Policy:
    """Read ``NAME``, ``-NAME,-NAME`` or ``auto``.

    Raises:
        BackendError: It is none of these.

    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or words == ["auto"]:
        return Policy(source=source)
    forbidden = {word[1:] for word in words if word.startswith("-")}
    forced = [word for word in words if not word.startswith("-")]
    unknown = sorted((forbidden | set(forced)) - set(NAMES))
    if unknown:
        msg = f"{source}: {unknown[0]!r} is not a kernel. There are {', '.join(NAMES)}, and auto"
        raise BackendError(msg)
    if "mlx" in forbidden:
        msg = f"{source}: mlx cannot be forbidden, it is what answers when nothing else can"
        raise BackendError(msg)
    if len(forced) > 1 or (forced and forbidden):
        msg = f"{source}: force one kernel, or forbid some; {text!r} asks for both or for several"
        raise BackendError(msg)
    return Policy(
        forced=forced[0] if forced else None, forbidden=frozenset(forbidden), source=source
    )


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Force or forbid kernels inside a ``with`` block, over what the environment says.

    Args:
        backend: ``"cpu"``, ``"mlx"``, … forces that kernel; ``"-cpu"`` forbids it (several:
            ``"-cpu,-mlx-fp16"``); ``"auto"`` undoes both.

    Raises:
        BackendError: There is no such kernel. In the block, a call that the forced kernel refuses
            (or for which it is not validated) raises it too, with the reason.

    The setting belongs to the thread, or the asynchronous task, that enters the block. Calls that
    no kernel but MLX's could ever take (inside ``mx.compile`` or ``mx.vmap``, with ``force_fused``,
    or with arguments that MLX rejects) are MLX's whatever is forced.

    Examples:
        >>> q = mx.random.normal((1, 2, 5, 16))
        >>> with qwen_mfa.use("mlx"):
        ...     out = qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.25)
        >>> bool((out == mx.fast.scaled_dot_product_attention(q, q, q, scale=0.25)).all())
        True

    """
    token = of_context.set(parse(backend, f"qwen_mfa.use({backend!r})"))
    try:
        yield
    finally:
        of_context.reset(token)
