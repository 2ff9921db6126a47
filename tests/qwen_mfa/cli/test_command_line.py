"""The command line: what is typed wrong, interrupted, or written to a full disk."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qwen_mfa import cli
from qwen_mfa.cli import arguments, info
from qwen_mfa.cli.bench import attention, common

if TYPE_CHECKING:
    from collections.abc import Sequence


def failing(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> str:
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("explain 1 4 x 300 64 float32", "'x' is no whole number from 1 to 1048576"),
        ("explain 1 4 9 300 64 float32 --mask-shape 1,1,9,300", "give --mask bool"),
        ("explain 1 4 9 300 64 float32 --heads-kv 3", "do not divide"),
        ("explain 1 4 9 300 64 float32 --mask bool --mask-shape 1,1,7,300", "does not broadcast"),
        ("selftest --quick", "--quick belongs to --metal"),
        ("selftest --report x.json", "--report belongs to --metal"),
        ("selftest --image-tokens many", "'many' is no whole number from 0 to 16384"),
        ("bench attention --dtype float8 qwen-512", "'float8' is none of bfloat16"),
        ("bench attention 1,2,3,4,5 --out /dev/null/x.json", "cannot be written"),
        ("bench attention 1,2,3,4,5 --out /tmp", "/tmp is a folder: name a file"),
        ("bench attention 1,2,3,4,5 --plot /dev/null/x", "cannot be written"),
        ("bench dispatch --rounds 0", "'0' is no whole number from 1 to 1000"),
    ],
)
def test_mistakes_are_named_in_a_user_s_words(
    line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = failing(capsys, line.split())
    assert says in err
    assert "_size" not in err
    assert "Traceback" not in err


def test_options_do_not_eat_what_follows() -> None:
    parser = argparse.ArgumentParser()
    attention.configure(parser)
    args = parser.parse_args(["--dtype", "bfloat16,float32", "--mask", "none", "qwen-512"])
    assert args.dtype == ["bfloat16", "float32"]
    assert [shape.name for shape in args.shapes] == ["qwen-512"]


def test_some_of() -> None:
    read = arguments.some_of(("a", "b"))
    assert read("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError):
        read("a,")


def test_an_interruption_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_module: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupt)
    assert cli.main(["info"]) == 130


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("word", ["info", "--help", "--version"])
def test_a_full_standard_output(word: str) -> None:
    # Unbuffered, argparse does not look at what becomes of its help.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qwen_mfa", word], env=env,
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = iter([0.0, 5.0, 31.0, 31.0, 40.0])
    progress = common.Progress(clock=lambda: next(now))
    for step in range(3):
        progress(step / 4, f"round {step}")
    assert capsys.readouterr().err == " 25%  round 1\n"


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        ([], ""),
        (["Homepage, https://x.org"], ""),
        (["Repository, https://x.org/me/qwen-mfa/"], " to https://x.org/me/qwen-mfa/issues"),
    ],
    ids=["none", "another", "repository"],
)
def test_where_reports_go_is_what_the_project_s_metadata_say(
    urls: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Message()
    for url in urls:
        found["Project-URL"] = url
    monkeypatch.setattr(info.importlib.metadata, "metadata", lambda _name: found)
    assert info.report_to() == says


@pytest.mark.parametrize("given", ["there/picture", "there/picture.png", "there/picture.svg"])
def test_a_picture_s_file_names_both(given: str) -> None:
    assert common._prefix(given) == Path("there/picture")
