"""What is looked at before anything is loaded, and what is said when it will not do."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from qwen_mfa import machine
from qwen_mfa.kernels import metal
from qwen_mfa.kernels.metal import device, dlpack
from qwen_mfa.native import library
from qwen_mfa.problem import Problem
from tests.standins.metal import capsules

if TYPE_CHECKING:
    from tests.qwen_mfa.kernels.metal.conftest import StandinMac

pytestmark = pytest.mark.cpu

PROBLEM = Problem(
    batch=1, heads_q=24, heads_kv=24, seq_q=1124, seq_kv=1124, head_dim=128, value_dim=128,
    dtype="bfloat16",
)  # fmt: skip


def test_elsewhere_it_refuses_at_once_and_loads_nothing() -> None:
    code = (
        "import sys; from qwen_mfa.selection import choose; from qwen_mfa.kernels import metal\n"
        "assert not [m for m in sys.modules if 'kernels.metal.' in m], 'import has effects'\n"
        "from qwen_mfa.native import library\n"
        f"from qwen_mfa.problem import Problem\nprint(metal.accurate.refuses({PROBLEM!r}))\n"
        "assert not {'Metal', 'objc'} & set(sys.modules) and library.outcome._made is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"Metal needs macOS, and this is {sys.platform}\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_a_fit_machine(mac: StandinMac) -> None:
    assert metal.accurate.refuses(PROBLEM) is None
    found = {check.subject: check.found for check in device.checks()}
    assert found["macOS"] == "26.1 (25B78)"
    assert found["Metal device"] == "Apple M3 Max, applegpu_g15s, GPU family Apple9"
    assert all(check.refusal is None for check in device.checks())
    assert len(device.as_rows()) == len(found) == 9
    assert mac.count("encodes") == 0


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"kern.osproductversion": "14.7.1"}, "macOS 14.7.1 is too old"),
        ({"kern.osproductversion": ""}, "macOS unknown is too old"),
        ({"hw.optional.arm64": ""}, "is not Apple silicon"),
        ({"sysctl.proc_translated": "1"}, "translated by Rosetta"),
    ],
)
def test_system_and_processor(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], part: str
) -> None:
    monkeypatch.setattr(library, "load", lambda: pytest.fail("the library was opened"))
    for name, value in values.items():
        monkeypatch.setitem(mac.values, name, value)
    refusal = metal.accurate.refuses(PROBLEM)
    assert refusal is not None
    assert part in refusal


def test_the_version_shim_is_not_believed(mac: StandinMac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.mac_ver", lambda: ("10.16", ("", "", ""), "arm64"))
    monkeypatch.setitem(mac.values, "kern.osproductversion", "15.0")
    assert metal.accurate.refuses(PROBLEM) is None


@pytest.mark.parametrize(
    ("switches", "part"),
    [
        ({"no_device": 1}, "no Metal device"),
        ({"no_queue": 1}, "makes no command queue"),
    ],
)
def test_metal_device(mac: StandinMac, switches: dict[str, int], part: str) -> None:
    mac.switch(**switches)
    assert part in str(metal.accurate.refuses(PROBLEM))


def test_pyobjc_missing(mac: StandinMac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "objc", None)
    assert "pip install pyobjc-framework-Metal" in str(metal.accurate.refuses(PROBLEM))
    monkeypatch.undo()
    del mac


def test_mlx_on_the_cpu_at_any_time(mac: StandinMac, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metal.accurate.refuses(PROBLEM) is None
    monkeypatch.setattr(device, "mlx_device", lambda: (mx.DeviceType.cpu, "", ""))
    assert metal.accurate.refuses(PROBLEM) == "MLX's default device is not the GPU"
    del mac


def test_mlx_on_another_gpu(mac: StandinMac, monkeypatch: pytest.MonkeyPatch) -> None:
    other = (mx.DeviceType.gpu, "Another GPU", "applegpu_g99")
    monkeypatch.setattr(device, "mlx_device", lambda: other)
    assert "another GPU (Another GPU)" in str(metal.accurate.refuses(PROBLEM))
    del mac


def test_the_same_gpu_under_an_architecture_of_somebodys_choice(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As MLX_METAL_GPU_ARCH makes MLX say.
    _, name, _ = device.mlx_device()
    monkeypatch.setattr(device, "mlx_device", lambda: (mx.DeviceType.gpu, name, "applegpu_g99"))
    assert metal.accurate.refuses(PROBLEM) is None
    del mac


@pytest.mark.parametrize(("version", "fits"), [("0.31.9", False), ("0.32.0", True), ("1.0", True)])
def test_mlx_version(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch, version: str, fits: bool
) -> None:
    real = device.metadata.version
    monkeypatch.setattr(
        device.metadata, "version", lambda name: version if name == "mlx" else real(name)
    )
    refusal = metal.accurate.refuses(PROBLEM)
    assert (refusal is None) is fits
    assert fits or "pip install -U 'mlx>=0.32'" in str(refusal)
    del mac


@pytest.mark.parametrize(
    ("setting", "value", "part"),
    [("device", 1, "DLPack device 1"), ("cpu_address", True, "a CPU address")],
)
def test_mlx_without_metal_buffers(mac: StandinMac, setting: str, value: object, part: str) -> None:
    capsules.settings[setting] = value
    refusal = str(metal.accurate.refuses(PROBLEM))
    assert "does not hand out its Metal buffers" in refusal
    assert part in refusal
    assert mac.count("encodes") == 0


def test_the_portable_library_is_not_taken_for_metal(
    mac: StandinMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QWEN_MFA_LIBRARY")
    assert "the portable engine" in str(metal.accurate.refuses(PROBLEM))
    del mac


def test_forked_children_are_refused(mac: StandinMac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_PROCESS", os.getpid() + 1)
    assert "forked" in str(metal.accurate.refuses(PROBLEM))
    del mac


@pytest.mark.parametrize(
    ("gpu", "backend", "part"),
    [("applegpu_g13g", "", "slow before the M3"), ("applegpu_g14s", "", "slow before the M3"),
     ("applegpu_g15s", "", None), ("applegpu_g17g", "mlx-metal 1 (macosx_15_0_arm64)", None),
     ("applegpu_g17g", "mlx-metal 1 (macosx_26_0_arm64)", "matrix units"), ("", "", None)],
)  # fmt: skip
def test_where_mlx_is_expected_to_win(gpu: str, backend: str, part: str | None) -> None:
    here = replace(machine.read(), system="macOS", release="26.2", gpu=gpu, backends=(backend,))
    reason = device.prefers_mlx(here)
    assert (reason is None) == (part is None)
    assert part is None or part in str(reason)


def test_capsules_of_both_kinds_are_read() -> None:
    """The real capsule that MLX makes here is read right, and is not taken for Metal."""
    array = mx.arange(24, dtype=mx.float32).reshape(2, 3, 4)[:, 1:, ::2]
    mx.eval(array)
    capsule = array.__dlpack__()  # what it holds is gone with it
    tensor = dlpack._tensor(capsule)
    assert (tensor.device_type, tensor.ndim, tensor.code, tensor.bits) == (1, 3, 2, 32)
    assert [tensor.shape[i] for i in range(3)] == [2, 2, 2]
    assert [tensor.strides[i] for i in range(3)] == [12, 4, 2]
    with pytest.raises(device.dlpack.MetalError, match="device type 1"):
        dlpack.export(array)
    with pytest.raises(device.dlpack.MetalError, match="not a DLPack capsule"):
        dlpack._tensor(object())
    assert "DLPack device 1" in str(dlpack.why_not_metal(array))


def test_versioned_capsules_are_read() -> None:
    import ctypes

    import numpy as np

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    capsule = array.__dlpack__(max_version=(1, 0))
    tensor = dlpack._tensor(capsule)
    assert (tensor.device_type, tensor.ndim) == (1, 2)
    assert [tensor.shape[i] for i in range(2)] == [2, 3]
    values = ctypes.cast(tensor.data + tensor.byte_offset, ctypes.POINTER(ctypes.c_float))
    assert values[5] == 5.0
