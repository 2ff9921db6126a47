"""What this machine is: the facts that decide which kernel is fastest, and that reports need."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from qwen_mfa import backend

SYSTEM: str = sys.platform  # a variable, so that the type checker looks at every branch
# Packages that carry a backend of MLX; which one is there decides what its kernels are.
BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
_FEATURES = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "asimd", "asimdhp", "bf16", "i8mm", "sve"),
)
NVIDIA = Path("/proc/driver/nvidia/version")  # there while the driver is loaded
_SYSCTL_FEATURES = ("FEAT_BF16", "FEAT_FP16", "FEAT_I8MM", "FEAT_SME")
_GENERATIONS = {13: "M1", 14: "M2", 15: "M3", 16: "M4", 17: "M5"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine and the MLX on it.

    Attributes:
        system: ``"macOS"`` or ``"Linux"``, or what Python calls it.
        release: Version of macOS, or of the kernel.
        build: Build of the operating system.
        machine: Instruction set architecture.
        chip: Marketing name of the processor.
        features: Instruction set extensions that matter here.
        cpus: Processors that this process may use.
        memory: Bytes.
        gpu: MLX's name of the GPU architecture, such as ``"applegpu_g13g"``; empty without one.
        driver: Version of NVIDIA's driver, where it is loaded.
        python: Version of Python.
        mlx: Version of MLX.
        backends: Installed backend packages with version and wheel tag.

    """

    system: str
    release: str
    build: str
    machine: str
    chip: str
    features: tuple[str, ...]
    cpus: int
    memory: int
    gpu: str
    python: str
    mlx: str
    backends: tuple[str, ...]
    driver: str = ""

    @property
    def driver_major(self) -> int:
        """Return the first number of ``driver``; 0 without one."""
        found = re.match(r"\d+", self.driver)
        return int(found[0]) if found else 0

    @property
    def apple_generation(self) -> int:
        """Return 13 for M1, 14 for M2, … 17 for M5; 0 where there is no Apple GPU.

        From MLX's architecture names (``mlx/backend/metal/device.cpp``).
        """
        match = re.match(r"applegpu_g(\d+)", self.gpu)
        return int(match[1]) if match else 0

    @property
    def gpu_family(self) -> str:
        """Return the GPU in words, or ``"none"``."""
        known = _GENERATIONS.get(self.apple_generation)
        return f"{self.gpu} ({known})" if known else self.gpu or "none"

    @property
    def release_numbers(self) -> tuple[int, ...]:
        """Return the release as numbers, to compare."""
        return tuple(int(x) for x in re.findall(r"\d+", self.release)[:2])

    @property
    def mlx_has_matrix_kernels(self) -> bool:
        """Whether MLX's Metal build has the kernels for M5's matrix units.

        Only the builds for macOS 26 have them, and they run from macOS 26.2 on.
        """
        tags = [x for x in self.backends if x.startswith("mlx-metal")]
        return any("macosx_26" in tag for tag in tags) and self.release_numbers >= (26, 2)


def read() -> Host:
    """Ask the system. Takes a millisecond or so; starts no other program."""
    on_mac = SYSTEM == "darwin"
    return Host(
        system={"darwin": "macOS", "linux": "Linux"}.get(SYSTEM, SYSTEM),
        release=_macos() if on_mac else platform.release(),
        build=sysctl("kern.osversion") if on_mac else platform.version(),
        machine=platform.machine(),
        chip=sysctl("machdep.cpu.brand_string") if on_mac else _cpuinfo("model name"),
        features=_mac_features() if on_mac else _linux_features(),
        cpus=available_cpus(),
        memory=_memory(),
        gpu=_gpu(),
        python=platform.python_version(),
        mlx=_version("mlx"),
        backends=tuple(filter(None, (_backend(name) for name in BACKENDS))),
        driver=_nvidia_driver(),
    )


def _macos() -> str:
    # platform.mac_ver says 10.16 where Python was built with an old SDK.
    return sysctl("kern.osproductversion") or platform.mac_ver()[0]


def available_cpus() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sysctl(name: str) -> str:
    """Return a value of macOS's sysctl as text (integers in decimal); empty if there is none."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "sysctlbyname"):
        return ""
    size = ctypes.c_size_t(0)
    if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0) or not size.value:
        return ""
    data = ctypes.create_string_buffer(size.value)
    if libc.sysctlbyname(name.encode(), data, ctypes.byref(size), None, 0):
        return ""
    if size.value in (4, 8) and not name.endswith(("string", "version")):
        return str(int.from_bytes(data.raw[: size.value], sys.byteorder))
    return data.value.decode("utf-8", "replace")


def _mac_features() -> tuple[str, ...]:
    return tuple(x for x in _SYSCTL_FEATURES if sysctl(f"hw.optional.arm.{x}") == "1")


def _linux_features() -> tuple[str, ...]:
    words = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(x for x in _FEATURES if x in words)


def _cpuinfo(field: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(rf"^{field}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _nvidia_driver() -> str:
    try:
        text = NVIDIA.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"Kernel Module.*?\s(\d+\.[.\d]+)\s", text)
    return found[1] if found else "of an unknown version"


def _gpu() -> str:
    if backend.problem():  # reports about a broken MLX need this module, too
        return ""
    import mlx.core as mx  # noqa: PLC0415

    device = mx.Device(mx.DeviceType.gpu)
    if not mx.is_available(device):
        return ""
    return str(mx.device_info(device).get("architecture", "unknown"))


def _version(name: str) -> str:
    import importlib.metadata  # noqa: PLC0415 - slow to import

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _backend(name: str) -> str:
    import importlib.metadata  # noqa: PLC0415 - slow to import

    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    tags = re.findall(r"^Tag: (.*)$", found.read_text("WHEEL") or "", re.MULTILINE)
    return f"{name} {found.version} ({', '.join(tags) or 'tag unknown'})"
