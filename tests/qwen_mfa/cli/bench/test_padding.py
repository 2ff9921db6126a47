"""`qwen-mfa bench padding`: what it reports. How fast anything is, is not a test's business."""

from __future__ import annotations

import json

import pytest

from qwen_mfa.cli import main

SMALL = ["--heads", "1", "--image-tokens", "64", "--text-tokens", "20", "--rounds", "2"]


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "padding", *SMALL, "--real", "5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["keys"], report["padded"], report["heads"]) == (84, 15, 1)
    ways = {f"{who}, {how}" for who in ("MLX", "qwen-mfa") for how in ("masked", "removed")}
    assert report["seconds"].keys() == ways
    for who, ratio in report["masked_over_removed"].items():
        assert ratio["low"] <= ratio["median"] <= ratio["high"]
        assert report["seconds"][f"{who}, removed"]["median"] > 0


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "padding", *SMALL, "--real", "20", "--dtype", "float32"]) == 0
    text = capsys.readouterr().out
    assert "84 joint tokens, of which 0 padded text (0%)" in text
    assert text.count("removed") == 3


def test_too_few_queries_are_only_masked(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--heads", "1", "--image-tokens", "8", "--text-tokens", "4", "--rounds", "1"]
    assert main(["bench", "padding", *few, "--real", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["masked_over_removed"] == {}
    assert report["seconds"].keys() == {"MLX, masked", "qwen-mfa, masked"}


@pytest.mark.parametrize("bad", [["--real", "21"], ["--real", "-1"], ["--rounds", "0"]], ids=str)
def test_numbers_that_make_no_sense(capsys: pytest.CaptureFixture[str], bad: list[str]) -> None:
    assert main(["bench", "padding", *SMALL, "--real", "5", *bad]) == 2
    assert "give positive numbers" in capsys.readouterr().out
