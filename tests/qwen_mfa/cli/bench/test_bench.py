"""The benchmarks: arithmetic, honesty about what was left out, and surviving a kill."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from qwen_mfa import cli, errors, settings
from qwen_mfa.cli.bench import (
    attention,
    common,
    contestants,
    footprint,
    peers,
    plot,
    records,
    shapes,
    step,
)
from qwen_mfa.cli.bench.rounds import Rounds, Spread, interleave, interleaved
from qwen_mfa.kernels import mlx
from qwen_mfa.transforms import padding

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TINY = "1,2,70,90,32"


def test_rounds_change_their_order() -> None:
    order: list[str] = []
    seen: list[int] = []
    found = interleave(
        {name: lambda name=name: order.append(name) for name in "abc"},  # type: ignore[misc]
        rounds=9,
        warm_up=1,
        on_round=lambda number, _: seen.append(number),
    )
    rounds = ["".join(order[i : i + 3]) for i in range(0, 30, 3)]
    assert rounds[0] == "abc"
    assert all(sorted(x) == ["a", "b", "c"] for x in rounds)
    assert len(set(rounds[1:])) > 1
    assert seen == list(range(1, 10))
    assert {len(times) for times in found.times.values()} == {9}


def test_ratios_are_taken_within_rounds() -> None:
    # The machine was ten times as slow in the second round; the ratio is 2 in each.
    found = Rounds(times={"slow": [2.0, 20.0, 2.0], "fast": [1.0, 10.0, 1.0]})
    assert found.ratio("slow", "fast") == Spread(median=2, low=2, high=2)
    assert Spread.of([1.0]) == Spread(median=1, low=1, high=1)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(median=3, low=2, high=4)


def test_the_fastest_peer_is_named() -> None:
    times = {
        "mlx": [9.0, 9.0],
        "cpu": [2.0, 4.0],
        "torch": [5.0, 6.0],
        "numpy": [3.0, 6.0],
        "jax": [],
    }
    found = attention.against_peers(Rounds(times=times))
    assert found["peer_over_kernel"] == 1.5
    assert "cpu is 1.50 x as fast (1.50 to 1.50) as numpy, the fastest peer" in str(found["text"])
    assert attention.against_peers(Rounds(times={"mlx": [1.0], "cpu": [1.0]})) == {}
    assert attention.against_peers(Rounds(times={"mlx": [1.0], "torch": [1.0]})) == {}


@pytest.mark.parametrize("text", ["qwen", "1,2,3", "1,2,3,4,0", "1,2,3,4,x", "1,2,3,4,5,6"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="neither"):
        shapes.parse(text)


def test_named_shapes_are_qwen_image_s() -> None:
    lengths = {name: shape.seq_q for name, shape in shapes.NAMED.items()}
    assert lengths == {"qwen-512": 1124, "qwen-1024": 4196, "qwen-1328": 6989, "qwen-2048": 16484}
    assert shapes.NAMED["qwen-512"].flops == 4 * 24 * 1124 * 1124 * 128


@pytest.mark.cpu
@pytest.mark.parametrize("mask", shapes.MASKS)
def test_contestants_agree(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is right: every contestant's result is MLX's."""
    monkeypatch.setattr(padding, "MIN_FLOPS", 0)  # for a small problem, too
    call = shapes.draw(shapes.parse(TINY), "float32", mask)
    expected = mlx.run(call)
    taking_part = [n for n, why in contestants.names(call, with_peers=False).items() if not why]
    assert {"mlx", "cpu"} <= set(taking_part)
    assert any(name.endswith(contestants.REMOVED) for name in taking_part) == (mask == "padding")
    for name in taking_part:
        out = contestants.contestant(name, call)()
        assert mx.abs(out - expected).max().item() < 1e-5, name


def test_the_numpy_peer_computes_attention() -> None:
    call = shapes.draw(shapes.parse(TINY), "float32", "none")
    out = peers.work("numpy", call)()
    assert abs(np.array(mlx.run(call)) - out).max() < 1e-5
    assert peers.refusal("numpy", shapes.draw(shapes.parse(TINY), "bfloat16", "none"))
    for name in peers.NEEDED:
        masked = shapes.draw(shapes.parse(TINY), "float32", "padding")
        assert name == "torch" or peers.refusal(name, masked)


def bench(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(["bench", "attention", TINY, "--rounds", "2", *args]) == 0
    return capsys.readouterr().out


@pytest.mark.cpu
def test_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = bench(capsys, "--no-memory")
    for word in ("contestant", "cpu", "mlx", "quartiles", "noise: MLX against itself"):
        assert word in text
    (case,) = json.loads(bench(capsys, "--json"))["cases"]
    entries = {entry["contestant"]: entry for entry in case["entries"]}
    assert entries["mlx"]["gain"]["median"] == 1.0
    assert entries["cpu"]["rounds"] == 2
    assert entries["cpu"]["memory"] is not None
    time = entries["cpu"]["seconds"]["median"]
    assert entries["cpu"]["gflops"] == pytest.approx(4 * 2 * 70 * 90 * 32 / time / 1e9)


def test_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = bench(capsys, "--markdown", "--no-memory").strip().splitlines()
    assert lines[0].startswith("**")
    assert {line.count("|") for line in lines[2:]} == {len(records.HEADER) + 1}


@pytest.mark.cpu
def test_what_would_take_too_long_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = bench(capsys, "--limit", "1e-9", "--no-memory")
    assert "more than --limit" in text
    lines = [line.split() for line in text.splitlines() if "more than --limit" in line]
    assert {"mlx", "cpu"} <= {line[0] for line in lines}
    assert all(line[1:7] == ["-"] * 6 for line in lines)


def test_a_kernel_that_refuses_is_listed_with_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = bench(capsys, "--dtype", "float32", "--no-memory")
    (line,) = [line for line in text.splitlines() if line.startswith("mlx-fp16")]
    assert "bfloat16" in line


@pytest.mark.cpu
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_kill_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "qwen_mfa", "bench", "attention", TINY, "--no-memory"]
    child = subprocess.Popen(
        [*command, "--rounds", "1000", "--dtype", "float32", "--out", str(out)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not out.exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["complete"] is False
    (case,) = report["cases"]
    assert next(e for e in case["entries"] if e["contestant"] == "cpu")["rounds"] >= 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interruption_shows_what_there_is_and_keeps_it(tmp_path: Path) -> None:
    """Without --out, too; `bench show` then finds it."""
    kept = tmp_path / "bench" / "attention.json"
    environment = {**os.environ, settings.CACHE_DIR: str(tmp_path)}
    command = [sys.executable, "-m", "qwen_mfa", "bench"]
    # A process started in the background ignores the signal, and so would the child.
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from qwen_mfa import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = ["attention", TINY, "--no-memory", "--rounds", "1000", "--dtype", "float32"]
    child = subprocess.Popen(
        [sys.executable, "-c", listening, "bench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while not kept.exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "incomplete" in out
    assert str(kept) in err
    shown = subprocess.run(
        [*command, "show", "--markdown"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    assert shown.startswith(f"**{TINY}")
    assert "incomplete" in shown


def test_what_is_kept_is_read_again_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    text = bench(capsys, "--no-memory", "--out", str(out))
    assert cli.main(["bench", "show", str(out)]) == 0
    assert capsys.readouterr().out.strip() == text.strip()
    report = records.load(out)
    assert report.complete
    report.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"cases": [{"shape": "x"}]}', "[" * 100_000, "FIFO"]
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "r.json"
    if content == "FIFO":
        os.mkfifo(file)
    elif content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(errors.QwenMfaError, match=r"no report of `qwen-mfa bench`"):
        records.load(file)


def test_an_unwritable_cache_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "file"))
    monkeypatch.setenv("QWEN_MFA_TUNE", "0")
    assert "contestant" in bench(capsys, "--no-memory")
    out = str(tmp_path / "file" / "r.json")
    assert cli.main(["bench", "attention", TINY, "--no-memory", "--out", out]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_the_bar() -> None:
    now = iter([0.0, 0.5, 40.0, 600.0])
    progress = common.Progress(clock=lambda: next(now))
    assert progress.line(0, "drawing") == "[........................]   0%  drawing"
    assert progress.line(0.25, "a") == "[######..................]  25%  a, about 2 min left"
    assert progress.line(1, "b") == "[########################] 100%  b"


def test_quick_calls_are_timed_several_at_a_time() -> None:
    calls = {"quick": 0, "slow": 0}

    def work(name: str) -> None:
        calls[name] += 1

    found = list(
        interleaved(
            {name: lambda name=name: work(name) for name in calls},  # type: ignore[misc]
            rounds=2,
            warm_up=1,
            repeats={"quick": 7},
        )
    )
    assert calls == {"quick": 17, "slow": 3}
    assert {name: len(times) for name, times in found[-1].times.items()} == {"quick": 2, "slow": 2}


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = tmp_path / "pictures" / "time"
    cli.main(["bench", "attention", TINY, "1,2,140,180,32", "--rounds", "1", "--plot", str(prefix)])
    png, svg = (prefix.with_name(prefix.name + suffix) for suffix in (".png", ".svg"))
    assert str(png) in capsys.readouterr().out
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    assert ET.parse(svg).getroot().tag.endswith("svg")  # noqa: S314 - our own file


def report_of(*, complete: bool, memory: int | None, lengths: Sequence[int]) -> dict[str, Any]:
    spread = Spread(median=2.0, low=1.5, high=2.5)
    entries = tuple(
        records.Entry(contestant=name, rounds=3, seconds=spread, memory=memory)
        for name in ("mlx", "cpu")
    )
    cases = [
        records.Case(
            shape=f"1,2,{n},{n},32", sizes={"B": 1, "H": 2, "Sq": n, "Skv": n, "D": 32},
            dtype="float32", mask="none", complete=complete or n != lengths[-1], entries=entries,
        )
        for n in lengths
    ]  # fmt: skip
    machine = {"device": "CPU: Some Processor", "system": "Linux", "mlx": "0.32"}
    report = records.Report(bench="attention", machine=machine, complete=complete, cases=cases)
    return report.as_dict()


def test_pictures_say_what_was_measured_and_where() -> None:
    whole = plot.titles(report_of(complete=True, memory=1, lengths=[7, 9]), "ringed")
    assert whole == [
        "Attention, B 1, H 2, D 32, float32, mask none",
        "CPU: Some Processor; Linux, MLX 0.32",
    ]
    part = plot.titles(report_of(complete=False, memory=1, lengths=[7]), "hatched")
    assert part[0].startswith("Attention, 1,2,7,7,32, B 1, H 2, Sq 7")
    assert part[-1].startswith("INTERRUPTED")
    assert "hatched" in part[-1]


@pytest.mark.parametrize("lengths", [[7], [7, 9]], ids=["bars", "lines"])
@pytest.mark.parametrize("complete", [True, False])
def test_pictures_have_no_empty_panel(lengths: list[int], complete: bool, tmp_path: Path) -> None:
    widths = []
    for memory in (None, 1 << 20):
        report = report_of(complete=complete, memory=memory, lengths=lengths)
        png, _svg = plot.draw(report, tmp_path / "picture")
        widths.append(int.from_bytes(png.read_bytes()[16:20], "big"))  # of the header chunk
    assert widths[1] == 2 * widths[0]


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(errors.QwenMfaError, match="nothing to draw"):
        plot.draw(report_of(complete=False, memory=1, lengths=[]), tmp_path / "picture")
    assert not any(tmp_path.iterdir())


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(errors.QwenMfaError, match="pip install"):
        plot.require()


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = records.Report(bench="attention", machine={})
    target = tmp_path / "r.json"
    report.save(target)
    before = target.read_text(encoding="utf-8")

    def fail(*_: Any, **__: Any) -> str:
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(type(target), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert target.read_text(encoding="utf-8") == before


def test_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(step, "WIDTH", 256)
    monkeypatch.setattr(step, "HEADS", 2)
    argv = ["bench", "step", "4,5", "--blocks", "2", "--no-memory", "--modules", "own"]
    assert cli.main([*argv, "--dtype", "float32", "--rounds", "2"]) == 0
    text = capsys.readouterr().out
    assert "2 of Qwen-Image's 60 blocks" in text
    assert "not measured" in text
    for words in ("noise: MLX against itself", "of peak", "quartiles", "attention dispatch ("):
        assert words in text


def test_step_s_sizes_are_qwen_image_s() -> None:
    found = [step.parse(name) for name in shapes.NAMED]
    assert [size.tokens for size in found] == [shape.seq_q for shape in shapes.NAMED.values()]
    assert step.parse("8,20").tokens == 84
    for text in ("qwen", "8", "0,1", "1,2,3", "a,b"):
        with pytest.raises(argparse.ArgumentTypeError, match="neither"):
            step.parse(text)


def test_a_step_s_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "WIDTH", 256)
    monkeypatch.setattr(step, "HEADS", 2)
    size = {"name": "x", "side": 4, "text": 5}
    arguments = {"size": size, "blocks": 1, "dtype": "float32", "backend": "mlx"}
    step.prepared(arguments)()  # runs here
    assert (
        footprint.measure("qwen_mfa.cli.bench.step", {**arguments, "size": 1}, timeout=60) is None
    )


def test_the_projection_is_amdahl_s() -> None:
    found = Rounds(
        times={
            "step mlx": [10.0],
            "step dispatch": [7.0],
            "attention mlx": [5.0],
            "attention dispatch": [1.0],
        }
    )
    result = step.project(found, blocks=2)
    assert result.share == 0.5
    assert result.attention_gain == 5
    assert result.projected_gain == pytest.approx(1 / (0.5 + 0.5 / 5))
    assert result.projected_step == pytest.approx(10 / 2 * 60 * (0.5 + 0.5 / 5))
    assert result.step_gain == pytest.approx(10 / 7)


@pytest.mark.parametrize(("mask", "kept"), [("none", None), ("padding", 100.0)])
def test_a_peak_below_what_a_contestant_reached_is_an_error(mask: str, kept: float | None) -> None:
    spread = Spread.of([1.0])
    entries = tuple(
        records.Entry(contestant=name, seconds=spread, gflops=gflops, of_peak=gflops / 100)
        for name, gflops in (("slow", 50.0), ("fast", 101.0))
    )
    sizes = {"B": 1, "H": 1, "Sq": 8, "Skv": 8, "D": 8}
    case = records.Case(
        shape="x", sizes=sizes, dtype="float32", mask=mask, peak_gflops=100.0, entries=entries
    )
    found = records.with_honest_peak(case)
    assert found.peak_gflops == kept
    assert [x.of_peak for x in found.entries] == ([None, None] if kept is None else [0.5, 1.01])
    text = records.as_text([found])
    assert ("ERROR: fast reached 101.0 GFLOP/s" in text) == (kept is None)


def test_a_peak_that_holds_is_shown() -> None:
    entry = records.Entry(contestant="x", seconds=Spread.of([1.0]), gflops=99.0, of_peak=0.99)
    sizes = {"B": 1, "H": 1, "Sq": 8, "Skv": 8, "D": 8}
    case = records.Case(
        shape="x", sizes=sizes, dtype="float32", mask="none", peak_gflops=100.0, entries=(entry,)
    )
    assert records.with_honest_peak(case) is case
