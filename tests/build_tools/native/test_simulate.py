"""The miniature on a stand-in that executes: from the package's functions to the numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from build_tools.commands import simulate as command
from build_tools.native import typecheck
from build_tools.native.standins import Standins, simulation
from build_tools.native.standins.simulation import Case, Result, Simulator, different_bits
from build_tools.source import fetch, overlay, remotes
from build_tools.source import lock as locks
from build_tools.support.errors import BuildError
from build_tools.support.paths import ROOT
from tests.standins.upstream.repositories import write_overlay

if TYPE_CHECKING:
    from pathlib import Path

    from tests.standins.upstream.repositories import Upstream

SMALL = Case(
    family=9, input="bf16", intermediate="fp32", variant="plain", length_q=21, length_kv=37,
    head_dim=16,
)  # fmt: skip


@pytest.fixture(scope="session")
def simulator(
    swift: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Simulator:
    """Return the miniature, built once for all test workers, on a device that executes."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "simulate"
    with FileLock(f"{shared}.lock"):
        library = shared / "build" / "release" / "libMFAFFI.so"
        if not library.is_file():
            shared.mkdir(exist_ok=True)
            own = tmp_path_factory.mktemp("simulate")
            lock = locks.load(upstream.write_lock(own / "lock.toml"))
            tree = fetch.obtain(lock, cache=own / "cache", remotes=remotes.Remotes())
            repairs = overlay.load(write_overlay(own / "overlay"))
            typecheck.compile_tree(tree, repairs, work=shared)
    # Those that the library is linked with: a second copy would have types of its own.
    standins = Standins(folder=shared / "standins" / "release")
    return Simulator(library, standins, cache=shared / "cache")


def test_every_class_mask_and_layout_is_right(simulator: Simulator) -> None:
    cases = [
        replace(
            SMALL, family=family, variant=variant, input=kind, intermediate=inner, mask=mask,
            layout=layout, length_q=37 if mask == "causal" else 21,
        )
        for family in simulation.FAMILIES
        for variant in simulation.VARIANTS
        for kind, inner in (("bf16", "fp32"), ("bf16", "fp16"), ("fp16", "fp32"))
        for mask, layout in (("none", "dense"), ("additive", "interleaved"), ("causal", "dense"),
                             ("padding", "interleaved"))
    ]  # fmt: skip
    results = simulator.run(cases)
    assert [r.why for r in results if r.why] == []
    assert max(r.error for r in results) > 0  # something was computed
    assert different_bits(results, apart_from="variant") == []


def test_the_checker_finds_nothing_and_schedules_change_nothing(simulator: Simulator) -> None:
    cases = [
        replace(SMALL, family=family, mask="additive", schedule=schedule)
        for family in simulation.FAMILIES
        for schedule in ("forward", "shuffled:5")
    ]
    results = simulator.run(cases, check=True)
    assert [r.findings for r in results] == [()] * 4
    assert [r.why for r in results if r.why] == []
    assert different_bits(results, apart_from="schedule") == []


@pytest.mark.parametrize(("family", "variant"), [(8, "upstream"), (9, "plain")])
def test_the_package_proves_its_engine_over_it(
    family: int, variant: str, simulator: Simulator
) -> None:
    section = simulator.validation(family, variant, quick=True)
    assert section["failures"] == []
    assert len(section["validations"]) > 20
    assert {validation["kernel"] for validation in section["validations"]} == {"metal", "metal-low"}
    origins = section["origins"]
    assert {o["variant"] for o in origins if o["options"]} <= {variant, "upstream"}
    assert all(o["options"].startswith("language=3.2 math=relaxed") for o in origins)


PUBLIC = """
import mlx.core as mx
import qwen_mfa
from qwen_mfa.validation.inputs import draw
from qwen_mfa.cli.metal_sections import problem

drawn = draw(problem(40, 40, dim=16, heads=3, mask="bool"))
call = drawn.call
got = qwen_mfa.scaled_dot_product_attention(
    call.q, call.k, call.v, scale=call.scale, mask=call.mask
)
wide = [x.astype(mx.float32) for x in (call.q, call.k, call.v)]
expected = mx.fast.scaled_dot_product_attention(*wide, scale=call.scale, mask=call.mask)
import Metal
assert Metal.library.standin_waits() > 0, "no command buffer was waited for"
assert Metal.library.standin_misuses() == b"", Metal.library.standin_misuses()
print(float(mx.abs(got.astype(mx.float32) - expected).max()))
"""


def test_from_the_public_function_to_the_result(simulator: Simulator) -> None:
    env = simulator.environment(9, "plain") | {
        "QWEN_MFA_METAL_STANDIN": str(ROOT),
        "PYTHONPATH": str(simulation.PYOBJC),
        "QWEN_MFA_BACKEND": "metal",
    }
    done = subprocess.run(
        [sys.executable, "-c", PUBLIC], env=env, check=False, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout.split()[-1]) < 2**-7  # bfloat16 results of size 1


def test_a_process_that_ends_is_told_with_its_case(simulator: Simulator) -> None:
    with pytest.raises(
        BuildError,
        match=r"(?s)length_kv=53.*ended its process.*METAL_SCHEDULE=sideways",
    ):
        simulator.run([replace(SMALL, length_kv=53, schedule="sideways")])


def result(**changes: object) -> Result:
    facts = {"error": 1e-7, "bits": "a", "findings": (), "keys": ("k",), "why": ""}
    return Result(**{"case": SMALL, **facts, **changes})  # type: ignore[arg-type]


def test_what_disagrees() -> None:
    other = replace(SMALL, variant="upstream")
    assert different_bits([result(), result(case=other)], apart_from="variant") == []
    told = different_bits([result(), result(case=other, bits="b")], apart_from="variant")
    assert len(told) == 1
    answer = {"code": 0, "error": 1e-7, "bits": "", "findings": [], "origins": []}
    assert simulation._judge(SMALL, answer).why == ""
    assert "error code 5" in simulation._judge(SMALL, {"code": 5}).why
    assert "allowed is" in simulation._judge(SMALL, answer | {"error": 1e-3}).why
    assert "allowed is" in simulation._judge(SMALL, answer | {"error": float("nan")}).why
    assert simulation._judge(SMALL, answer | {"findings": ["out of bounds"]}).why
    assert not simulation._judge(SMALL, answer | {"findings": list(simulation.KNOWN)}).why
    behind = answer | {"findings": list(simulation.KNOWN_BEHIND)}
    assert not simulation._judge(SMALL, behind).why
    # Where every block of rows is full there is nothing behind the last.
    assert simulation._judge(replace(SMALL, length_q=simulation.ROWS), behind).why
    unstated = [{"options": "language=2.4 math=fast", "key": "k"}]
    assert "without a stated" in simulation._judge(SMALL, answer | {"origins": unstated}).why


def test_a_recorded_source_that_was_not_run(tmp_path: Path) -> None:
    record = tmp_path / "sources.json"
    record.write_text(json.dumps({"sources": [{"key": "k"}, {"key": "x"}]}), encoding="utf-8")
    assert command._not_run(record, [result()]) == ["the recorded source x was never run"]


def test_cases_reach_every_class() -> None:
    cases = simulation.numeric_cases()
    assert len({tuple(asdict(case).items()) for case in cases}) == len(cases)
    assert len({(c.family, c.input, c.intermediate, c.variant) for c in cases}) == 16
    assert {max(c.length_q, c.length_kv) > 256 for c in cases} == {True, False}
