"""What would make this machine faster: at most three things, in order of gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_mfa import settings
from qwen_mfa.cli import info

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qwen_mfa.machine import Host
    from qwen_mfa.selection.candidates import Finding

MOST = 3
_M5 = 17
_NATIVE_MACOS = (15, 0)
_NAX_MACOS = (26, 2)
CUDA13_DRIVER = 580  # the oldest of NVIDIA's drivers that CUDA 13 runs on


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """One thing to do.

    Attributes:
        weight: Expected gain, to put several in order; a rough factor on attention's speed.
        text: What to do, and why.

    """

    weight: float
    text: str


def give(
    host: Host, library_state: str, library_reason: str, findings: Sequence[Finding]
) -> list[Advice]:
    """Return what is worth doing, the greatest gain first.

    Args:
        host: The machine.
        library_state: ``"ready"``, ``"none"`` (an MLX-only wheel) or ``"unusable"``.
        library_reason: Why it is not ready.
        findings: On the candidates, for Qwen-Image's shapes.

    """
    found = [
        *_about_the_library(host, library_state, library_reason),
        *_about_settings(host),
        *_about_mlx(host),
        *_about_kernels(findings),
    ]
    return sorted(found, key=lambda advice: -advice.weight)[:MOST]


def _about_the_library(host: Host, state: str, reason: str) -> Iterator[Advice]:
    if state == "unusable":
        yield Advice(weight=10, text=f"Repair the library. {reason}")
    elif state == "none" and not _on_nvidia(host):  # there, no library of ours computes
        yield Advice(
            weight=4,
            text="Install a wheel with a native library for this platform: this is the MLX-only "
            "wheel, which pip falls back to when pip or the system is too old "
            "(python -m pip install --upgrade pip, then reinstall qwen-mfa)",
        )


def _about_settings(host: Host) -> Iterator[Advice]:
    wanted = settings.current()
    if wanted.backend not in ("", "auto"):
        yield Advice(
            weight=6,
            text=f"Unset {settings.BACKEND}={wanted.backend}: it overrides what was measured to be "
            "fastest",
        )
    if not wanted.tunes:
        text = f"Unset {settings.TUNE}=0: nothing new is validated or measured with it"
        yield Advice(weight=5, text=text)
    if 0 < wanted.num_threads < host.cpus and not host.gpu:
        yield Advice(
            weight=host.cpus / wanted.num_threads / 2,
            text=f"Unset {settings.NUM_THREADS}={wanted.num_threads}: there are {host.cpus} "
            "processors",
        )


def _about_mlx(host: Host) -> Iterator[Advice]:
    if host.system == "Linux" and host.driver and not host.gpu:
        toolkit = "13" if host.driver_major >= CUDA13_DRIVER else "12"
        yield Advice(
            weight=20,
            text="Let MLX compute on the NVIDIA GPU of this machine, in a new environment: pip "
            f"install 'mlx[cuda{toolkit}]' (its backends exclude each other)"
            if not any("cuda" in name for name in host.backends)
            else f"MLX's CUDA backend finds no GPU, although driver {host.driver} is loaded: see "
            "that nvidia-smi lists one, and that CUDA_VISIBLE_DEVICES does not hide it",
        )
    elif host.system == "Linux" and not host.backends:
        yield Advice(weight=20, text="Install a backend of MLX: pip install 'mlx[cpu]'")
    if host.system != "macOS":
        return
    if host.release_numbers < _NATIVE_MACOS:
        yield Advice(
            weight=3, text="Update to macOS 15 or later: the native Metal library needs it"
        )
    if host.apple_generation >= _M5 and not host.mlx_has_matrix_kernels:
        if host.release_numbers < _NAX_MACOS:
            text = (
                "Update to macOS 26.2 or later, and reinstall mlx: then MLX uses this chip's "
                "matrix units"
            )
        else:
            text = (
                "Reinstall MLX's build for macOS 26, which uses this chip's matrix units: "
                "python -m pip install --upgrade pip, then "
                "python -m pip install --force-reinstall mlx mlx-metal"
            )
        yield Advice(weight=3.5, text=text)


def _on_nvidia(host: Host) -> bool:
    return host.system == "Linux" and bool(host.gpu)


def expectation(host: Host) -> str:
    """Say what this package can do for ``host``, where that is not what its README promises."""
    if not _on_nvidia(host):
        return ""
    return (
        "MLX computes on an NVIDIA GPU here, where this package has no kernel of its own: what "
        "it can save is the padding of text, and work that surrounds attention (qwen-mfa run)"
    )


def _about_kernels(findings: Sequence[Finding]) -> Iterator[Advice]:
    for name in dict.fromkeys(finding.kernel.name for finding in findings):
        for finding in findings:
            result = finding.validation
            if finding.kernel.name == name and result is not None and not result.ok:
                yield Advice(
                    weight=2,
                    text=f"Report{info.report_to()} that kernel {name} is wrong on this machine "
                    f"(it is not used): {result.reason}",
                )
                break
