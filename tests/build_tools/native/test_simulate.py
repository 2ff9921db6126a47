"""The miniature on a stand-in that executes: from the package's functions to the numbers."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from filelock import FileLock

from build_tools.commands import simulate as command
from build_tools.commands.typecheck import SOURCES
from build_tools.native import typecheck
from build_tools.native.standins import simulated_package, simulation
from build_tools.native.standins.simulated_package import ALLOWED, Package
from build_tools.native.standins.simulation import Case, Result, Simulator, different_bits
from build_tools.source import fetch, overlay, remotes
from build_tools.source import lock as locks
from build_tools.support.errors import BuildError
from build_tools.support.paths import ROOT
from tests.standins.upstream.repositories import write_overlay

if TYPE_CHECKING:
    from collections.abc import Callable

    from build_tools.native.standins import Standins
    from tests.standins.upstream.repositories import Upstream

SMALL = Case(
    family=9, input="bf16", intermediate="fp32", variant="plain", length_q=21, length_kv=37,
    head_dim=16,
)  # fmt: skip


@pytest.fixture(scope="session")
def simulator(
    apple: Standins, upstream: Upstream, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Simulator:
    """Return the miniature, built once for all test workers, on a device that executes."""
    work = shared / "simulate"
    with FileLock(f"{work}.lock"):
        library = work / "build" / "release" / "libMFAFFI.so"
        if not library.is_file():
            work.mkdir(exist_ok=True)
            own = tmp_path_factory.mktemp("simulate")
            lock = locks.load(upstream.write_lock(own / "lock.toml"))
            tree = fetch.obtain(lock, cache=own / "cache", remotes=remotes.Remotes())
            repairs = overlay.load(write_overlay(own / "overlay"))
            typecheck.compile_tree(tree, repairs, work=work, apple=apple)
    return Simulator(library, apple, cache=shared / "software-metal")


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
        replace(SMALL, family=family, input=kind, mask="additive", schedule=schedule)
        for family, kind in zip(simulation.FAMILIES, ("bf16", "fp32"), strict=True)
        for schedule in ("forward", "shuffled:5")
    ]
    results = simulator.run(cases, check=True)
    assert [r.findings for r in results] == [()] * 4
    assert [r.why for r in results if r.why] == []
    assert different_bits(results, apart_from="schedule") == []


@pytest.mark.parametrize(("family", "variant"), [(8, "upstream"), (9, "plain")])
def test_the_package_tests_itself_over_it(
    family: int, variant: str, simulator: Simulator, tmp_path: Path
) -> None:
    report = Package(simulator, family, variant).selftest(tmp_path)
    assert (report["result"], report["reasons"]) == ("passed", [])
    section = report["sections"]["validation"]
    assert len(section["validations"]) == 40
    assert {validation["kernel"] for validation in section["validations"]} == {"metal", "metal-low"}
    assert all(0 < validation["margin"] <= 1 for validation in section["validations"])
    origins = section["origins"]
    assert {o["variant"] for o in origins if o["options"]} <= {variant, "upstream"}
    assert all(o["options"].startswith("language=3.2 math=relaxed") for o in origins)
    assert report["sections"]["leak"]["calls"] == 300


def test_qwen_image_s_shape_from_the_public_function_to_the_result(simulator: Simulator) -> None:
    found = Package(simulator, 9, "plain").attend(simulation.QWEN_IMAGE_TOKENS, 1)
    assert found["waits"] > 0, "no command buffer was waited for"
    assert found["misuses"] == []
    assert 0 < found["error"] <= ALLOWED


def test_no_device_relies_on_another_s_validation(simulator: Simulator) -> None:
    one, other = (Package(simulator, family, "plain") for family in simulation.FAMILIES)
    folders = [Path(each.environment["QWEN_MFA_CACHE_DIR"]) for each in (one, other)]
    assert folders[0] != folders[1]
    assert [list(folder.iterdir()) for folder in folders] == [[], []]
    del one, other
    assert not any(folder.exists() for folder in folders)


def test_golden_vectors_and_mistakes(simulator: Simulator) -> None:
    assert Package(simulator, 9, "plain").tests() == ""


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
    record.write_text(json.dumps({"sources": {"k": "one", "x": "another"}}), encoding="utf-8")
    assert command._not_run(record, [result()]) == ["the recorded source x was never run"]
    assert len(command._not_run(SOURCES, [result()])) == 32


CAUSAL = replace(SMALL, mask="causal", length_q=37)


@pytest.fixture(scope="module")
def ran(simulator: Simulator) -> str:
    """Return the key of the source that computes `CAUSAL`."""
    # `origins` of a process list each source that it asked for.
    (key,) = {key for result in simulator.run([CAUSAL]) for key in result.keys}
    return key


@pytest.fixture
def command_line(
    simulator: Simulator, ran: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., int]:
    """Run the command over the miniature, with one case instead of hundreds."""
    sources = tmp_path / "sources.json"
    sources.write_text(json.dumps({"sources": {ran: "the one"}}), encoding="utf-8")
    monkeypatch.setattr(fetch, "obtain", lambda *_, **__: None)
    built = (simulator.library, simulator.standins)
    monkeypatch.setattr(typecheck, "compile_tree", lambda *_, **__: built)
    both = [CAUSAL, replace(CAUSAL, variant="upstream")]
    monkeypatch.setattr(simulation, "numeric_cases", lambda: both)
    for name in ("checked_cases", "scheduled_cases"):
        monkeypatch.setattr(simulation, name, lambda: [CAUSAL])
    monkeypatch.setattr(simulation, "qwen_image_cases", lambda _: [])

    def run(*words: str) -> int:
        parser = argparse.ArgumentParser()
        command.configure(parser)
        where = ["--work", str(tmp_path / "work"), "--sources", str(sources)]
        return command.run(parser.parse_args([*where, *words]))

    return run


FAULTY = """#!{python}
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.standins.software_metal import compile
place = Path(sys.argv[1])
place.write_text(place.read_text().replace({anchor!r}, {replacement!r}))
sys.exit(compile.main())
"""


@pytest.mark.parametrize(
    ("anchor", "replacement", "told"),
    [
        ("", "", ""),
        ("column > row", "column >= row", "allowed is 3e-06"),
        ("threadgroup_barrier(mem_flags::mem_threadgroup); // keys are here", "",
         "race between simdgroups"),
    ],
    ids=["no fault", "a bound off by one", "a barrier removed"],
)  # fmt: skip
def test_the_command_says_what_disagrees(
    command_line: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], anchor: str, replacement: str, told: str,
) -> None:  # fmt: skip
    compiler = tmp_path / "compile"
    compiler.write_text(
        FAULTY.format(
            python=sys.executable, root=str(ROOT), anchor=anchor or "\0", replacement=replacement
        ),
        encoding="utf-8",
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(simulation, "COMPILER", compiler)
    assert command_line("--no-package") == (1 if told else 0)
    said = capsys.readouterr().out
    assert ("DISAGREES" in said) == bool(told)
    assert told in said.replace("\n", " ")


class Canned:
    """A package that answers what a test says."""

    answers: ClassVar[dict[str, Any]] = {}

    def __init__(self, *_: object) -> None:
        pass

    def selftest(self, _: Path) -> Any:
        return self.answers["selftest"]

    def validation(self) -> Any:
        return self.answers["validation"]

    def tests(self) -> Any:
        return self.answers["tests"]

    def attend(self, *_: object) -> Any:
        return self.answers["attend"]


WELL: dict[str, Any] = {
    "selftest": {"reasons": [], "sections": {"validation": {"validations": [
        {"ok": True, "margin": 0.5}]}}},
    "validation": {"validations": [{"ok": True, "margin": 0.5}], "failures": []},
    "tests": "",
    "attend": {"error": 1e-3, "seconds": 1.0, "waits": 2, "misuses": []},
}  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({}, None),
        ({"selftest": {"reasons": ["leak: much"], "sections": {}}}, "leak: much"),
        ({"selftest": {"reasons": [], "sections": {}}}, "nothing was validated"),
        ({"validation": {"validations": [{"ok": False, "margin": 3.0}], "failures": ["bad"]}},
         "bad"),
        ({"tests": "1 failed"}, "1 failed"),
        ({"attend": WELL["attend"] | {"error": float("nan")}}, "nan"),
        ({"attend": WELL["attend"] | {"error": 0.1}}, "0.1"),
        ({"attend": WELL["attend"] | {"waits": 0}}, "'waits': 0"),
        ({"attend": WELL["attend"] | {"misuses": ["committed twice"]}}, "committed twice"),
    ],
)  # fmt: skip
def test_what_the_package_finds_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: dict[str, Any], told: str | None
) -> None:
    monkeypatch.setattr(Canned, "answers", WELL | answers)
    monkeypatch.setattr(simulated_package, "Package", Canned)
    simulator: Any = None
    wrong = command._package(simulator, tmp_path, heads=1, full=True)
    assert bool(wrong) == bool(told)
    assert told is None or told in wrong[0]


def test_cases_reach_every_class() -> None:
    cases = simulation.numeric_cases()
    assert len({tuple(asdict(case).items()) for case in cases}) == len(cases)
    assert len({(c.family, c.input, c.intermediate, c.variant) for c in cases}) == 20
    assert {max(c.length_q, c.length_kv) > 256 for c in cases} == {True, False}
    scheduled = simulation.scheduled_cases()
    assert len({c.schedule for c in scheduled}) == 10
    assert len({(c.family, c.input, c.intermediate, c.mask) for c in scheduled}) == 20
    assert len(scheduled) == 200
