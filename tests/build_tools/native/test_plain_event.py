"""The very text of our `simdgroup_event`, compiled as C++ and run lane by lane."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from build_tools.support.paths import ROOT

OVERLAY = ROOT / "swift_pkg" / "overlay"
SHIM = ROOT / "tests" / "standins" / "metal-shim"
HARNESS = Path(__file__).with_name("event_test.cpp")


def plain_text() -> str:
    """The contents of the one raw string literal of PlainSimdgroupEvent.swift."""
    swift = (OVERLAY / "Sources" / "PlainSimdgroupEvent.swift").read_text(encoding="utf-8")
    found = re.findall(r'#"""\n(.*?)"""#', swift, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def compile_and_run(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    clang = shutil.which("clang++")
    if clang is None:
        pytest.skip("no clang++ (it comes with Swift): address spaces are its extension")
    (folder / "plain_event.h").write_text(text, encoding="utf-8")
    program = folder / "event_test"
    subprocess.run(
        [
            clang, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
            "-I", str(folder), "-I", str(SHIM), str(HARNESS), "-o", str(program),
        ],
        check=True,
    )  # fmt: skip
    return subprocess.run([program], check=False, capture_output=True, text=True, timeout=120)


def test_every_copy_is_right_and_stays_inside(tmp_path: Path) -> None:
    done = compile_and_run(plain_text(), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = int(done.stdout.removeprefix("checked "))
    assert checked > 10_000


def test_the_text_is_plain_metal() -> None:
    text = plain_text()
    assert "__asm" not in text
    # No private intrinsic: all of them begin with __metal.
    assert "__metal_" not in text
    # The include guard is upstream's, so that upstream's header drops out.
    assert text.startswith("#ifndef __METAL_SIMDGROUP_EVENT\n#define __METAL_SIMDGROUP_EVENT\n")


MUTATIONS = {
    "reads behind the source tile": ("from_x < columns && from_y < rows", "true"),
    "reads one column too many": ("from_x < columns &&", "from_x <= columns &&"),
    "leaves the margin as it was": ("T value = T(0);", "T value = T(1);"),
    "swaps the axes": ("columns = transpose_matrix ?", "columns = !transpose_matrix ?"),
    "clamps to one column too few": ("? columns - 1", "? columns - 2"),
    "writes behind the destination": ("min(dst_tile_dimensions.x, src_tile_dimensions.x)",
                                      "src_tile_dimensions.x"),
    "skips elements": ("column -= columns;", "column = 0;"),
    "lets every lane copy everything": ("const uint rank = lane_rank();", "const uint rank = 0;"),
    "forgets the row stride": ("dst[y * dst_elements_per_row + x] = value",
                               "dst[y * tile.columns + x] = value"),
    "loses the last element of a line": ("i < n_elements", "i + 1 < n_elements"),
    "does not wait": ("simdgroup_barrier(mem_flags::mem_device);", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_harness_notices(name: str, tmp_path: Path) -> None:
    before, after = MUTATIONS[name]
    text = plain_text()
    assert before in text
    done = compile_and_run(text.replace(before, after), tmp_path)
    assert done.returncode != 0, f"the harness does not notice a copy that {name}"
