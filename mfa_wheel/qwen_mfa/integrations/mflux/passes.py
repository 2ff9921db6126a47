"""A step's positive and negative pass, together and not computed yet: the one place that has both.

mflux calls the transformer twice and hands both results to ``compute_guided_noise``. Called from
there, the transformer returns a `Pass`: what is to be computed, with a slice of the result if the
host takes one (Edit). `compute_guided_noise` then has both passes and the guidance:

- where guidance is 1, the negative pass cancels, and is not computed;
- both passes of one transformer at one timestep share their blocks' modulation.

Each case is recognised by what is given. Whoever calls the transformer from elsewhere (a callback,
mlx-teacache, a script) gets an array, computed as ever; and a pass that is used in any other way
becomes an array at that moment.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa import forks, telemetry
from qwen_mfa.errors import HostError
from qwen_mfa.integrations.mflux import modulation, skeleton
from qwen_mfa.integrations.mflux.freeing import Freed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from qwen_mfa.integrations.mflux.options import Options

GENERATORS = {
    "mflux.models.qwen.variants.txt2img.qwen_image": "QwenImage",
    "mflux.models.qwen.variants.edit.qwen_image_edit": "QwenImageEdit",
}
NAMES = (
    *("t", "config", "hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask"),
    *("qwen_image_ids", "cond_image_grid"),
)


class Pass:
    """One pass of the transformer, computed when it is needed.

    Attributes:
        transformer: The host's.
        arguments: Its keyword arguments.

    """

    def __init__(
        self,
        transformer: Any,
        arguments: dict[str, Any],
        compute: Callable[[Any, dict[str, Any]], mx.array],
        index: tuple[Any, ...] = (),
        whole: Pass | None = None,
    ) -> None:
        """Describe ``compute(transformer, arguments)``, indexed by ``index`` in turn."""
        self.transformer = transformer
        self.arguments = arguments
        self._compute = compute
        self._index = index
        self._whole = whole
        self._array: mx.array | None = None

    def array(self) -> mx.array:
        """Compute it, once."""
        if self._array is None:
            if self._whole is not None:
                found = self._whole.array()
            else:
                found = self._compute(self.transformer, self.arguments)
            for index in self._index:
                found = found[index]
            self._array = found
        return self._array

    def shares_timestep_with(self, other: Pass) -> bool:
        """Whether both passes have the same timestep, schedule, precision and batch."""
        mine, theirs = self.arguments, other.arguments
        hidden, hidden_too = mine["hidden_states"], theirs["hidden_states"]
        return (
            self.transformer is other.transformer
            and mine["config"] is theirs["config"]
            and type(mine["t"]) is type(theirs["t"])
            and mine["t"] == theirs["t"]
            and hidden.dtype == hidden_too.dtype
            and hidden.shape == hidden_too.shape
            and mine.get("cond_image_grid") == theirs.get("cond_image_grid")
        )

    def __getitem__(self, index: Any) -> Pass:
        return Pass(self.transformer, self.arguments, self._compute, (index,), self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array(), name)


def _through_array(name: str) -> Callable[..., Any]:
    def method(self: Pass, *others: Any) -> Any:
        plain = [other.array() if isinstance(other, Pass) else other for other in others]
        return getattr(self.array(), name)(*plain)

    return method


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow"),
    *("matmul", "rmatmul", "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge", "len", "iter"),
    *("float", "bool", "array", "mlx_array", "dlpack", "dlpack_device"),
):
    if hasattr(mx.array, f"__{_name}__"):
        setattr(Pass, f"__{_name}__", _through_array(f"__{_name}__"))
Pass.__hash__ = object.__hash__  # type: ignore[method-assign]


class Passes:
    """Stands behind the transformer's ``__call__`` and ``compute_guided_noise``.

    `run_both` computes the two passes of a step; it may be replaced by whatever computes them
    elsewhere, such as on several devices.
    """

    def __init__(self, options: Options) -> None:
        """Nothing is computed before the host calls."""
        self.options = options
        self.run_both: Callable[[Pass, Pass, float], tuple[mx.array, mx.array]] = self.in_turn
        self._compute: Callable[[Any, dict[str, Any]], mx.array] | None = None
        self.on_picture: Callable[[int], None] | None = None
        self._config: Any = None
        # By identity; whose it was is looked at, because identities are used again.
        self._freed: dict[int, Freed] = {}
        self._lock = forks.lock()

    def transformer_method(self, original: Callable[..., mx.array]) -> Callable[..., Any]:
        """Return what is put in ``QwenTransformer.__call__``."""
        self._compute = compute = self._computing(original)

        def __call__(transformer: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            arguments = {**dict(zip(NAMES, args, strict=False)), **kwargs}
            if sys._getframe(1).f_code in _generators():  # noqa: SLF001
                return Pass(transformer, arguments, compute)
            return compute(transformer, arguments)

        return __call__

    def defer(self, transformer: Any, **arguments: Any) -> Pass:
        """Return what the host's own loop gets for calling ``transformer``: a pass not computed.

        The transformer's module must be imported, and the integration on.
        """
        if self._compute is None:
            msg = "mflux's transformer is not imported, or the integration is off"
            raise HostError(msg)
        return Pass(transformer, arguments, self._compute)

    def guidance_method(self, original: Any) -> staticmethod[..., Any]:
        """Return what is put in ``QwenImage.compute_guided_noise``, a static method too."""
        guide: Callable[..., mx.array] = original.__func__

        def compute_guided_noise(noise: Any, noise_negative: Any, guidance: float) -> mx.array:
            if isinstance(noise, Pass) and isinstance(noise_negative, Pass):
                noise, noise_negative = self.run_both(noise, noise_negative, guidance)
            return guide(noise, noise_negative, guidance)

        return staticmethod(compute_guided_noise)

    def in_turn(self, positive: Pass, negative: Pass, guidance: float) -> tuple[mx.array, mx.array]:
        """Compute both passes here, one after the other, without what is redundant."""
        if guidance == 1 and self.options.skip_negative:
            telemetry.count_part("negative passes", "skipped: guidance is 1")
            # noise + 1 · (noise - noise) is what the host computes from it.
            only = positive.array()
            return only, only
        telemetry.count_part("negative passes", "computed")
        if not (self.options.share_modulation and positive.shares_timestep_with(negative)):
            return positive.array(), negative.array()
        store = modulation.Store()
        with modulation.sharing(store):
            both = positive.array(), negative.array()
        telemetry.count_part("modulation", "shared by both passes", len(store.shared))
        return both

    def _computing(
        self, original: Callable[..., mx.array]
    ) -> Callable[[Any, dict[str, Any]], mx.array]:
        def run(transformer: Any, arguments: dict[str, Any]) -> mx.array:
            if not self.options.free_modulation:
                return original(transformer, **arguments)
            with self._lock:
                freed = self._freed.get(id(transformer))
                if freed is None or freed.transformer() is not transformer:
                    freed = Freed.of(transformer, arguments, original)
                    self._freed[id(transformer)] = freed
            with modulation.sharing(freed.store(arguments)):
                return original(transformer, **arguments)

        def compute(transformer: Any, arguments: dict[str, Any]) -> mx.array:
            self._begin(transformer, arguments["config"])
            given = {name: arguments[name] for name in _DECIDING}
            if self.options.precision == "host":
                return run(transformer, arguments)
            if all(x.dtype == mx.bfloat16 for x in given.values()):
                telemetry.count_part("precision", "bfloat16 already")
                return run(transformer, arguments)
            if not _is_bfloat16(transformer):
                telemetry.count_part("precision", "as mflux has it: no bfloat16 weights")
                return run(transformer, arguments)
            telemetry.count_part("precision", "passes in bfloat16")
            cast = {name: x.astype(mx.bfloat16) for name, x in given.items()}
            found = run(transformer, {**arguments, **cast})
            return found.astype(arguments["hidden_states"].dtype)

        return compute

    def _begin(self, transformer: Any, config: Any) -> None:
        """Tell whoever wants to know how many blocks a new picture will run."""
        if self.on_picture is None or config is self._config:
            return
        self._config = config
        steps = getattr(config, "num_inference_steps", None)
        passes = 2 if getattr(config, "guidance", None) != 1 else 1
        if isinstance(steps, int):
            self.on_picture(passes * steps * len(transformer.transformer_blocks))


# What the transformer computes in follows from these two.
_DECIDING = ("hidden_states", "encoder_hidden_states")


def _is_bfloat16(transformer: Any) -> bool:
    """Whether the weights (of quantised ones: their scales) are bfloat16."""
    arrays, _ = skeleton.read(transformer["transformer_blocks"][0])
    return any(x.dtype == mx.bfloat16 for x in arrays)


def _generators() -> set[CodeType]:
    """Return the code of the host's two loops, as far as they are imported."""
    found = set()
    for module, owner in GENERATORS.items():
        loaded = sys.modules.get(module)
        generate = getattr(getattr(loaded, owner, None), "generate_image", None)
        code = getattr(generate, "__code__", None)
        if code is not None:
            found.add(code)
    return found
