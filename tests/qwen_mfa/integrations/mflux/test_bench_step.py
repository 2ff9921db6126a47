"""``qwen-mfa bench step`` with mflux's own modules, small."""

from __future__ import annotations

import argparse
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from qwen_mfa.cli import main
from qwen_mfa.cli.bench import freed, pipeline, rounds, step
from qwen_mfa.integrations import mflux

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cpu


def test_mflux_s_own_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "HEADS", 2)
    monkeypatch.setattr(pipeline, "TEXT_DIM", 64)
    ways = ["all, bfloat16", "bfloat16 latents: mflux", "guidance 1: mflux", "guidance 1: all"]
    let_go = "all, bfloat16, modulation let go"
    words = ["--blocks", "1", "--rounds", "1", "--ways", ";".join([*ways, let_go])]
    out = tmp_path / "step.json"
    assert main(["bench", "step", "2,3", *words, "--out", str(out)]) == 0
    assert "guidance 1: all" in capsys.readouterr().out
    case, alone = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert case["complete"]
    assert [entry["contestant"] for entry in case["entries"]] == ["mflux", *ways]
    for entry in case["entries"]:
        assert entry["seconds"]["median"] > 0
        assert entry["memory"] > 0
    found = case["conclusions"]
    assert found["error mflux"] == 0
    assert 0 < found["error all, bfloat16"] < 0.1
    assert found["error guidance 1: all"] < 0.01
    assert "under trial" not in str(found), "what is timed was still being found out"
    assert not mflux.status().enabled
    # What cannot be taken back has a process of its own, and is held against both there.
    assert [entry["contestant"] for entry in alone["entries"]] == ["mflux", ways[0], let_go]
    assert all(entry["seconds"]["median"] > 0 for entry in alone["entries"])
    dim = 2 * 128
    modulation = 2 * 6 * (dim * dim + dim) * 2  # bytes: of image and text, in bfloat16
    assert alone["conclusions"]["freed"] == pytest.approx(modulation, rel=0.1)
    assert "bit for bit" in alone["conclusions"]["same"]
    _, with_all, without = (entry["memory"] for entry in alone["entries"])
    assert with_all - without > 0.5 * modulation


def test_a_process_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "HEADS", 0)
    words = ["--blocks", "1", "--rounds", "1"]
    parser = argparse.ArgumentParser()
    step.configure(parser)
    name = "all, modulation let go"
    case = freed.measure(step.parse("2,3"), name, parser.parse_args(words))
    (entry,) = case.entries
    assert entry.contestant == name
    assert entry.skipped
    assert "Error" in entry.skipped


def test_operations_are_those_of_the_products() -> None:
    """At 1024 x 1024 with 100 and 12 text tokens: 138 TFLOP in two passes of 60 blocks."""
    size = step.parse("64,100")
    assert pipeline.operations(size, 60, passes=2) == pytest.approx(1.38e14, rel=0.01)
    assert pipeline.operations(size, 60, passes=1) == pytest.approx(0.70e14, rel=0.01)


def test_switching_on_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users switch the integration on once, and it takes as long as part of a short step."""
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    @contextmanager
    def within(_: str) -> Iterator[None]:
        spend(100)
        yield
        spend(100)

    steps = {"once": lambda: spend(1), "often": lambda: spend(2)}
    options: dict[str, Any] = {"rounds": 2, "repeats": {"often": 3}, "within": within}
    *_, found = rounds.interleaved(steps, **options)
    assert found.times == {"once": [1, 1], "often": [2, 2]}


def test_unknown_ways() -> None:
    with pytest.raises(ValueError, match="unknown ways"):
        pipeline.names("all;nothing")
    assert pipeline.names("all")[0] == "mflux"
