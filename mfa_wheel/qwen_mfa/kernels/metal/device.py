"""Whether this machine, process and MLX can run the Metal engine; each refusal is a sentence.

The checks go from the cheapest to those that load something, and stop at the first refusal: no
library and no Metal is touched on a machine that is not for them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from qwen_mfa.errors import LibraryError
from qwen_mfa.kernels.metal import dlpack, system
from qwen_mfa.native import library
from qwen_mfa.once import Once

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_mfa.machine import Host

OLDEST_MACOS = (15, 0)
OLDEST_MLX = (0, 32)
APPLE7 = 1007  # MTLGPUFamilyApple7: M1; the library calls M3 and later Apple9
NEWEST_FAMILY = 1020
_M3, _M5 = 15, 17  # Host.apple_generation
_PROCESS = os.getpid()


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at.
        found: What was found.
        refusal: The sentence that says why Metal cannot run, or ``None``.

    """

    subject: str
    found: str
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """The Metal device.

    Attributes:
        name: Such as ``"Apple M3 Max"``.
        architecture: Such as ``"applegpu_g15s"``.
        family: The newest ``MTLGPUFamilyApple…`` that it supports; 1009 is Apple9.

    """

    name: str
    architecture: str
    family: int


def refusal() -> str | None:
    """Return why the Metal engine cannot run here, in a sentence, or ``None``."""
    elsewhere = system.why_not_macos()
    if elsewhere is not None:
        return elsewhere
    if os.getpid() != _PROCESS:
        return "this process was forked, and Metal does not work in a forked child"
    found = checks()[-1].refusal
    # The one fact that a program may change at any time.
    return found or _device_of_mlx().refusal


def prefers_mlx(here: Host) -> str | None:
    """Return why MLX is expected to win on ``here``, or ``None``.

    Nothing but MLX runs anywhere unless it was measured to be faster; this says what to expect.
    """
    if 0 < here.apple_generation < _M3:
        return (
            f"{here.gpu_family}: copies into threadgroup memory are slow before the M3, so MLX "
            "runs unless it is measured to be slower"
        )
    if here.apple_generation >= _M5 and here.mlx_has_matrix_kernels:
        return (
            f"{here.gpu_family}: MLX uses its matrix units and this engine does not, so MLX runs "
            "unless it is measured to be slower"
        )
    return None


def _look() -> tuple[Check, ...]:
    done: list[Check] = []
    for look in (
        _system, _processor, _mlx_version, _device_of_mlx, _library, _binding, _metal_device,
        _same_device, _buffers,
    ):  # fmt: skip
        done.append(look())
        if done[-1].refusal is not None:
            break
    return tuple(done)


# Everything that is looked at once a process; the last entry refuses if any does.
checks = Once(_look)


def _check(subject: str, found: str, *, ok: bool, refusal: str) -> Check:
    return Check(subject=subject, found=found, refusal=None if ok else refusal)


def _system() -> Check:
    version = system.macos_version()
    text = ".".join(map(str, version)) or "unknown"
    build = system.sysctl("kern.osversion") or "unknown build"
    return _check(
        "macOS",
        f"{text} ({build})",
        ok=version >= OLDEST_MACOS,
        refusal=f"macOS {text} is too old: the Metal library needs macOS 15 or later",
    )


def _processor() -> Check:
    chip = system.sysctl("machdep.cpu.brand_string") or "unknown processor"
    if not system.is_arm64():
        refusal = f"{chip} is not Apple silicon"
    elif system.is_translated():
        refusal = "this Python is an Intel one, translated by Rosetta: install an arm64 Python"
    else:
        return Check(subject="processor", found=chip)
    return Check(subject="processor", found=chip, refusal=refusal)


def _mlx_version() -> Check:
    text = metadata.version("mlx")
    numbers = tuple(int(x) for x in re.findall(r"\d+", text)[:2])
    return _check(
        "MLX",
        text,
        ok=numbers >= OLDEST_MLX,
        refusal=f"MLX {text} does not hand out its Metal buffers: pip install -U 'mlx>=0.32'",
    )


def mlx_device() -> tuple[mx.DeviceType, str, str]:
    """Return the type of MLX's default device, and the GPU's name and architecture."""
    gpu = mx.Device(mx.DeviceType.gpu)
    facts = mx.device_info(gpu) if mx.is_available(gpu) else {}
    kind = mx.default_device().type
    return kind, str(facts.get("device_name", "")), str(facts.get("architecture", ""))


def _device_of_mlx() -> Check:
    kind, name, _ = mlx_device()
    return _check(
        "MLX's device",
        name if kind == mx.DeviceType.gpu else "CPU",
        ok=kind == mx.DeviceType.gpu,
        refusal="MLX's default device is not the GPU",
    )


def _library() -> Check:
    try:
        found = library.load()
    except LibraryError as error:
        return Check(subject="library", found="none", refusal=str(error))
    return _check(
        "library",
        f"{found.path} ({found.origin})",
        ok=not found.is_portable,
        refusal="the embedded library is the portable engine, not the Metal one",
    )


def _binding() -> Check:
    try:
        modules()
    except ImportError as error:
        return Check(
            subject="PyObjC",
            found="none",
            refusal=f"PyObjC is missing ({error}): pip install pyobjc-framework-Metal",
        )
    try:
        found = metadata.version("pyobjc-framework-Metal")
    except metadata.PackageNotFoundError:
        found = "not installed as a package"
    return Check(subject="PyObjC", found=found)


def modules() -> tuple[Any, Any]:
    """Return the modules ``Metal`` and ``objc`` of PyObjC, imported on first use."""
    import Metal  # noqa: PLC0415 - loads frameworks
    import objc  # noqa: PLC0415

    return Metal, objc


def describe_gpu() -> Gpu:
    """Return the facts of the system's default Metal device; it must be there."""
    metal, objc = modules()
    with objc.autorelease_pool():
        return _facts(metal.MTLCreateSystemDefaultDevice())


def _facts(device: Any) -> Gpu:
    families = (family for family in range(NEWEST_FAMILY, APPLE7 - 1, -1))
    return Gpu(
        name=str(device.name()),
        architecture=str(device.architecture().name()),
        family=next((family for family in families if device.supportsFamily_(family)), 0),
    )


def _metal_device() -> Check:
    metal, objc = modules()
    with objc.autorelease_pool():
        device = metal.MTLCreateSystemDefaultDevice()
        if device is None:
            return Check(
                subject="Metal device",
                found="none",
                refusal="there is no Metal device (a virtual machine without one, perhaps)",
            )
        gpu = _facts(device)
        # The library ends the process where a queue cannot be made: see first that it can.
        queue = device.newCommandQueue()
    found = f"{gpu.name}, {gpu.architecture}, GPU family Apple{max(gpu.family - 1000, 0)}"
    if queue is None:
        return Check(
            subject="Metal device", found=found, refusal=f"{gpu.name} makes no command queue"
        )
    return _check(
        "Metal device",
        found,
        ok=gpu.family >= APPLE7,
        refusal=f"{gpu.name} is not of GPU family Apple7 (M1) or later",
    )


def _same_device() -> Check:
    # By name: the architecture is what MLX_METAL_GPU_ARCH says, where somebody set it.
    _, name, architecture = mlx_device()
    gpu = describe_gpu()
    return _check(
        "MLX's GPU",
        f"{name}, {architecture}",
        ok=name == gpu.name,
        refusal=f"MLX uses another GPU ({name}) than Metal's default one ({gpu.name})",
    )


def _buffers() -> Check:
    """Look at one small array's buffer before any is handed to the library.

    A pointer that is not an ``id<MTLBuffer>`` ends the process at the first message to it.
    """
    probe = mx.zeros((3,), dtype=mx.float32)
    mx.eval(probe)
    why = dlpack.why_not_metal(probe)
    return _check(
        "MLX's buffers",
        why or "Metal buffers by DLPack",
        ok=why is None,
        refusal=f"MLX {metadata.version('mlx')} does not hand out its Metal buffers ({why})",
    )


def as_rows(look: Callable[[], tuple[Check, ...]] = checks) -> list[dict[str, str]]:
    """Return the checks as plain data, for reports."""
    if system.SYSTEM != "darwin":
        return [{"subject": "system", "found": system.SYSTEM, "refusal": refusal() or ""}]
    return [{"subject": c.subject, "found": c.found, "refusal": c.refusal or ""} for c in look()]
