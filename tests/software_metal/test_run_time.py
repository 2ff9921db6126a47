"""The run time by itself: who runs where, who meets whom, what ends the process, schedules."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.software_metal.attention import Case, perform, source
from tests.software_metal.conftest import Ends
from tests.software_metal.simdgroup import HEAD, one_kernel, one_simdgroup
from tests.standins.software_metal import host
from tests.standins.software_metal.compile import HERE, CompileError
from tests.standins.software_metal.translate import translate

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.software_metal.attention import Outcome
    from tests.software_metal.conftest import Ended

pytestmark = pytest.mark.cpu

PLACES = """
kernel void places(
  device uint *out [[buffer(0)]], constant uint3 &grid [[buffer(1)]],
  uint3 at [[thread_position_in_grid]], uint3 group [[threadgroup_position_in_grid]],
  ushort3 inside [[thread_position_in_threadgroup]], uint index [[thread_index_in_threadgroup]],
  ushort lane [[thread_index_in_simdgroup]], ushort simdgroup [[simdgroup_index_in_threadgroup]],
  uint3 size [[threads_per_threadgroup]], uint3 groups [[threadgroups_per_grid]]
) {
  device uint *row = out + ((at.z * grid.y + at.y) * grid.x + at.x) * 6;
  row[0] = group.x + groups.x * (group.y + groups.y * group.z);
  row[1] = inside.x + size.x * (inside.y + size.y * inside.z);
  row[2] = index;
  row[3] = simdgroup * 32 + lane;
  row[4] += 1;
  row[5] = size.x;
}
"""


@pytest.mark.parametrize("meets", [False, True])
def test_every_thread_of_the_grid_runs_once_where_it_says(meets: bool) -> None:
    text = PLACES
    if meets:
        text = text.replace(
            "row[5] = size.x;", "row[5] = size.x; threadgroup_barrier(mem_flags::mem_none);"
        )
    threads, group = (13, 5, 3), (4, 4, 2)
    out = np.zeros((*threads[::-1], 6), np.uint32)
    grid = np.array([*threads, 0], np.uint32).tobytes()
    host.load(HEAD + text).dispatch(
        "places", {0: host.Bound(array=out), 1: grid}, threads=threads, group=group
    )
    assert (out[..., 4] == 1).all()
    assert (out[..., 1] == out[..., 2]).all()
    assert (out[..., 2] == out[..., 3]).all()
    assert (out[..., 0] == _groups(threads, group)).all()
    # The last threadgroups are as small as what is left.
    assert out[0, 0, 12, 5] == 1
    assert out[0, 0, 0, 5] == 4


def _groups(threads: tuple[int, int, int], group: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    counts = [-(-t // g) for t, g in zip(threads, group, strict=True)]
    x, y, z = (np.arange(t) // g for t, g in zip(threads, group, strict=True))
    return np.asarray(x[None, None] + counts[0] * (y[None, :, None] + counts[1] * z[:, None, None]))


def test_what_lanes_exchange() -> None:
    lanes = np.arange(32)
    assert (one_simdgroup("out[at] = simd_shuffle_xor(float(lane), 5);") == (lanes ^ 5)).all()
    assert (one_simdgroup("out[at] = simd_broadcast(float(lane), 7);") == 7).all()
    assert (one_simdgroup("out[at] = simd_sum(uint(lane));") == lanes.sum()).all()
    prefix = np.cumsum(lanes) - lanes
    assert (one_simdgroup("out[at] = simd_prefix_exclusive_sum(uint(lane));") == prefix).all()


def test_memory_that_nobody_wrote_is_nan_or_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "threadgroup_barrier(mem_flags::mem_none); out[at] = shared[at];"
    local = "float never; threadgroup_barrier(mem_flags::mem_none); out[at] = never;"
    assert np.isnan(one_simdgroup(body)).all()
    assert np.isnan(one_simdgroup(local)).all()
    monkeypatch.setenv("SOFTWARE_METAL_POISON", "zero")
    assert (one_simdgroup(body) == 0).all()
    assert (one_simdgroup(local) == 0).all()


ENDS = {
    "half a simdgroup at its barrier": (
        "if (lane < 16) simdgroup_barrier(mem_flags::mem_none);",
        "divergence: a lane returns while others wait for it",
    ),
    "two operations": (
        "if (lane < 16) simdgroup_barrier(mem_flags::mem_none); else out[at] = simd_sum(1u);",
        "divergence: simd_sum, while others of the simdgroup are at simdgroup_barrier",
    ),
    "an operation beside a barrier": (
        "if (lane < 16) threadgroup_barrier(mem_flags::mem_none); else out[at] = simd_sum(1u);",
        "divergence: simd_sum, while others of the simdgroup are at a threadgroup_barrier",
    ),
    "a barrier beside an operation": (
        "if (lane >= 16) threadgroup_barrier(mem_flags::mem_none); else out[at] = simd_sum(1u);",
        "divergence: threadgroup_barrier, while others of the simdgroup are at simd_sum",
    ),
    "a simdgroup that never comes": (
        "if (simdgroup == 0) threadgroup_barrier(mem_flags::mem_none);",
        "a threadgroup_barrier that lanes which have returned never reach",
    ),
    "an odd address": (
        """threadgroup_barrier(mem_flags::mem_none);
        vec<float, 2> pair = *(const device vec<float, 2> *)(out + 1); out[0] = pair.x;""",
        "misaligned: an access of 8 bytes at an address that is 4 beyond a multiple",
    ),
}


@pytest.mark.parametrize("schedule", ["forward", "reversed", "shuffled:3"])
@pytest.mark.parametrize("name", ENDS)
def test_what_metal_leaves_undefined_ends_the_process(
    name: str, schedule: str, apart: Callable[[dict[str, Any]], Ended]
) -> None:
    body, told = ENDS[name]
    ended = apart({"body": body, "schedule": schedule, "lanes": 64})
    assert ended.status < 0
    # Which of two lanes that miss each other speaks depends on who comes first.
    others = ["divergence: ", "never reach"] if schedule != "forward" else []
    assert any(sentence in ended.said for sentence in (told, *others)), ended.said
    assert "simdgroup " in ended.said
    assert "lane " in ended.said


def test_function_constants() -> None:
    text = f"""{HEAD}
constant uint number [[function_constant(3)]];
constant bool asked [[function_constant(5)]];
kernel void run(device uint *out [[buffer(0)]]) {{
  out[0] = number;
  out[1] = is_function_constant_defined(asked) ? 2 + asked : 1;
}}"""
    program = host.load(text)
    out = np.zeros(2, np.uint32)
    for values, expected in (
        ({3: np.uint32(70000).tobytes(), 5: b"\1"}, [70000, 3]),
        ({3: np.uint32(4).tobytes()}, [4, 1]),
    ):
        program.set_constants(values)
        program.dispatch("run", {0: host.Bound(array=out)}, threads=(1, 1, 1), group=(1, 1, 1))
        assert out.tolist() == expected


def test_what_cannot_be_compiled_is_said() -> None:
    with pytest.raises(CompileError, match=r"source\.metal:3:\d+: error"):
        host.load(HEAD + "kernel void run(device uint *out [[buffer(0)]]) { out[0] = none; }")
    with pytest.raises(CompileError, match=r"stage_in.* is not modelled"):
        host.load(HEAD + "kernel void run(uint x [[stage_in]]) { }")
    # Address spaces are part of the language: a device pointer is no threadgroup pointer.
    with pytest.raises(CompileError, match="address_space"):
        host.load(
            HEAD + "kernel void run(device uint *out [[buffer(0)]]) { threadgroup uint *t = out; }"
        )


def test_no_such_kernel_and_no_such_grid() -> None:
    program = host.load(HEAD + PLACES)
    with pytest.raises(ValueError, match="nothing cannot be dispatched"):
        program.dispatch("nothing", {}, threads=(1, 1, 1), group=(1, 1, 1))
    with pytest.raises(ValueError, match="places cannot be dispatched"):
        program.dispatch("places", {}, threads=(2048, 1, 1), group=(2048, 1, 1))


@pytest.mark.parametrize("variant", ["upstream", "plain"])
def test_ten_schedules_give_the_same_bits(variant: str, attend: Callable[..., Outcome]) -> None:
    case = Case(variant=variant, apple9=False, schedules=tuple(host.schedules(10)))
    found = attend(case)
    assert len(set(case.schedules)) == 10
    assert found.same
    assert found.error < 2e-6


def test_a_schedule_that_is_none_is_refused(attend: Callable[..., Outcome]) -> None:
    with pytest.raises(Ends, match="SOFTWARE_METAL_SCHEDULE=sideways is none of"):
        attend(Case(schedules=("sideways",)))


def test_both_variants_give_the_same_bits(tmp_path: Path) -> None:
    both = [
        perform(c, source(c), tmp_path / "findings")
        for c in (Case(variant="upstream"), Case(variant="plain"))
    ]
    assert both[0].error == both[1].error


def build_object(target: str, source: Path, made: Path, *warnings: str) -> None:
    """Compile without what would need the C++ library's own objects: it takes a minute to build."""
    subprocess.run(
        [
            *[sys.executable, "-m", "ziglang", "c++", "-target", target, "-std=c++20", "-O1"],
            *["-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-exceptions"],
            *["-fno-rtti", "-fno-threadsafe-statics", "-I", str(HERE / "include"), *warnings],
            *["-c", str(source), "-o", str(made)],
        ],
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64-linux-gnu"])
def test_the_run_time_is_made_for_both_architectures(target: str, tmp_path: Path) -> None:
    for name in ("lanes", "execute", "check"):
        place = HERE / "runtime" / f"{name}.cpp"
        build_object(target, place, tmp_path / "object.o", "-Wall", "-Wextra", "-Werror")


# What Debian's libc6-arm64-cross puts there: the lanes' contexts are the C library's.
ARM = Path("/usr/aarch64-linux-gnu")


def test_lanes_meet_on_an_emulated_arm_processor(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64")
    if platform.machine() == "aarch64":
        pytest.skip("this is one: every other test runs on it")
    if emulator is None or not (ARM / "lib" / "libc.so.6").is_file():
        pytest.skip("no qemu-aarch64 (Debian: qemu-user) or no C library (libc6-arm64-cross)")
    meets = """shared[at] = float(at); threadgroup_barrier(mem_flags::mem_threadgroup);
      out[at] = shared[63 - at] + 100 * simd_shuffle_xor(float(lane), 5);"""
    parts = "if (lane < 16) simdgroup_barrier(mem_flags::mem_none);"
    kernel = tmp_path / "kernel.cpp"
    text = one_kernel("meets", meets) + one_kernel("parts", parts).removeprefix(HEAD)
    kernel.write_text(translate(text), encoding="utf-8")
    places = [kernel, Path(__file__).with_name("dispatch_one.cpp")]
    places += [HERE / "runtime" / f"{name}.cpp" for name in ("lanes", "execute", "absent")]
    for place in places:
        build_object("aarch64-linux-gnu", place, tmp_path / f"{place.stem}.o", "-w")
    link = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu", "-lm"]
    objects = map(str, tmp_path.glob("*.o"))
    subprocess.run([*link, *objects, "-o", str(tmp_path / "program")], check=True, timeout=300)

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [emulator, "-L", str(ARM), str(tmp_path / "program"), name]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    lanes = np.arange(64)
    expected = 63 - lanes + 100 * (lanes % 32 ^ 5)
    assert (np.array(run("meets").stdout.split(), float) == expected).all()
    parted = run("parts")
    assert parted.returncode < 0
    assert "divergence: a lane returns while others wait for it" in parted.stderr
