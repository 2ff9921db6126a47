"""Modulation of all steps first, then its weights let go: a third of the transformer's memory.

On request, for a process that makes pictures with one schedule. The embeddings of all timesteps
are the host's own: its transformer runs up to its first block, once for each step. Results are
bit-identical. What was let go does not come back: another schedule (or switching the integration
off) ends in a clear error before a block runs, and the model must be loaded anew.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn

from qwen_mfa import telemetry
from qwen_mfa.errors import HostError
from qwen_mfa.integrations.mflux import modulation, skeleton

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WITH_WEIGHTS = [name for name in modulation.MODULES if name.endswith("_linear")]


class Gone(nn.Module):
    """Where a block had the weights that were let go."""

    def __call__(self, _: Any) -> Any:
        """Raise `HostError`."""
        msg = (
            "the weights of this block's modulation were let go (free_modulation): the integration "
            "must stay on, and nobody else may run the blocks; load the model anew otherwise"
        )
        raise HostError(msg)


class _Captured(Exception):  # noqa: N818 - it is no error: the host ran as far as was wanted
    def __init__(self, embeddings: dict[str, Any]) -> None:
        self.embeddings = embeddings


@contextmanager
def _capturing() -> Iterator[None]:
    def stop(arguments: dict[str, Any]) -> None:
        raise _Captured({name: arguments.get(name) for name in modulation.EMBEDDINGS})

    with modulation.watching(stop):
        yield


@dataclass(kw_only=True)
class Freed:
    """One transformer whose modulation is known for all steps of one schedule.

    Attributes:
        transformer: The host's, held weakly: a model that is let go is let go whole.
        schedule: What the modulation depends on, see `_schedule`.
        steps: The blocks' modulation by step.

    """

    transformer: weakref.ref[Any]
    schedule: tuple[Any, ...]
    steps: dict[int, modulation.Store] = field(default_factory=dict)

    @classmethod
    def of(cls, transformer: Any, arguments: dict[str, Any], original: Callable[..., Any]) -> Freed:
        """Compute the modulation of all steps and let its weights go, block by block."""
        made = cls(transformer=weakref.ref(transformer), schedule=_schedule(arguments))
        embeddings = {}
        for t in range(len(arguments["config"].scheduler.timesteps)):
            try:
                with _capturing():
                    original(transformer, **{**arguments, "t": t})
            except _Captured as found:
                embeddings[t] = found.embeddings
            made.steps[t] = modulation.Store()
        freed = 0
        for block in transformer.transformer_blocks:
            with modulation.sharing(None):  # the step under way may have a store of its own
                values = {t: modulation.of(block, given) for t, given in embeddings.items()}
            mx.eval(values)
            for t, given in values.items():
                made.steps[t].values[id(block)] = given
            for name in WITH_WEIGHTS:
                freed += sum(x.nbytes for x in skeleton.read(block[name])[0])
                block[name] = Gone()  # type: ignore[no-untyped-call]  # mlx.nn is typed in part
        mx.clear_cache()
        telemetry.count_part("modulation", "MiB of weights let go", freed >> 20)
        return made

    def store(self, arguments: dict[str, Any]) -> modulation.Store:
        """Return the modulation of one step.

        Raises:
            HostError: It was not computed before the weights were let go.

        """
        found = self.steps.get(arguments["t"])
        if found is None or _schedule(arguments) != self.schedule:
            msg = (
                "this model's modulation weights were let go for another schedule "
                "(free_modulation): number of steps, scheduler, size where the scheduler looks at "
                "it, batch and precision must stay the same; load the model anew for others"
            )
            raise HostError(msg)
        return found


def _schedule(arguments: dict[str, Any]) -> tuple[Any, ...]:
    hidden, config = arguments["hidden_states"], arguments["config"]
    sigmas = tuple(float(x) for x in config.scheduler.sigmas)
    return sigmas, hidden.shape[0], hidden.dtype, arguments.get("cond_image_grid") is None
