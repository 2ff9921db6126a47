"""The engine never uses more threads than affinity, cgroup quota and the user allow."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import OPTIMISED, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.engine_build import Builder


@pytest.fixture(scope="module")
def probe(builder: Builder, gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cpu") / "cpu_probe"
    return builder.link(gcc, "cpu_probe.c", target, *OPTIMISED)


def quota(probe: Path, folder: Path, membership: str, files: dict[str, str]) -> int:
    """CPUs that a made-up cgroup tree allows."""
    root = folder / "cgroup"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    members = folder / "members"
    members.write_text(membership, encoding="utf-8")
    return int(run([str(probe), str(members), str(root)]))


V1 = {"cpu/job/cpu.cfs_quota_us": "250000", "cpu/job/cpu.cfs_period_us": "100000"}
CASES = {
    "v2 whole cpus": ("0::/a/b\n", {"a/b/cpu.max": "400000 100000"}, 4),
    "v2 fractions are cut off": ("0::/a\n", {"a/cpu.max": "290000 100000"}, 2),
    "v2 less than one is one": ("0::/a\n", {"a/cpu.max": "20000 100000"}, 1),
    "v2 max is no quota": ("0::/a\n", {"a/cpu.max": "max 100000"}, 0),
    "v2 a parent is tighter": (
        "0::/a/b\n",
        {"a/cpu.max": "100000 100000", "a/b/cpu.max": "800000 100000"},
        1,
    ),
    "v2 in the root": ("0::/\n", {"cpu.max": "300000 100000"}, 3),
    "v1": ("4:cpu,cpuacct:/job\n", {f"cpu,cpuacct{k[3:]}": v for k, v in V1.items()}, 2),
    "v1 under the bare name": ("4:cpuacct,cpu:/job\n", V1, 2),
    "v1 without quota": ("1:cpu:/job\n", {**V1, "cpu/job/cpu.cfs_quota_us": "-1"}, 0),
    "another controller": ("1:cpuset:/job\n", V1, 0),
    "nothing there": ("0::/gone\n", {}, 0),
    "not a cgroup file": ("rubbish\n:\n::\n", {"cpu.max": "x y"}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_quota(probe: Path, tmp_path: Path, case: str) -> None:
    membership, files, expected = CASES[case]
    assert quota(probe, tmp_path, membership, files) == expected


def threads(engine_test: Path, prefix: list[str], **environment: str) -> int:
    command = [*prefix, str(engine_test), "forward", "1", "3"]
    line = run(command, timeout=900, **environment)
    found = re.search(r"threads=(\d+)", line)
    assert found is not None, line
    return int(found.group(1))


def test_affinity(engine_test: Path) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity to set")
    one = min(os.sched_getaffinity(0))
    assert threads(engine_test, ["taskset", "-c", str(one)]) == 1


def test_user_limit(engine_test: Path) -> None:
    allowed = threads(engine_test, [])
    assert threads(engine_test, [], QWEN_MFA_NUM_THREADS="1") == 1
    assert threads(engine_test, [], QWEN_MFA_NUM_THREADS="9999") == allowed
    assert threads(engine_test, [], QWEN_MFA_NUM_THREADS="") == allowed
