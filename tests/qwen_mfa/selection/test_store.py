"""The cache file: bad content, bad places, many writers, sudden death."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from qwen_mfa import settings
from qwen_mfa.selection import store
from qwen_mfa.selection.store import Store
from tests.qwen_mfa.conftest import python

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = {"mlx": "1", "cpu": ["a", "b"]}


def filled(place: Path) -> Path:
    kept = Store(place, ENVIRONMENT)
    kept.put("a", {"n": 1})
    assert not kept.notes
    return kept.path


def left_over(place: Path) -> list[str]:
    return [x.name for x in place.iterdir() if not x.name.endswith((".json", ".lock"))]


def test_records_are_found_again(tmp_path: Path) -> None:
    filled(tmp_path)
    again = Store(tmp_path, ENVIRONMENT)
    assert again.get("a") == {"n": 1}
    again.put("b", {"n": 2})
    again.put("a", None)
    assert Store(tmp_path, ENVIRONMENT).records() == {"b": {"n": 2}}
    assert not left_over(tmp_path)


def test_another_environment_is_another_file(tmp_path: Path) -> None:
    filled(tmp_path)
    other = Store(tmp_path, {**ENVIRONMENT, "mlx": "2"})
    assert other.records() == {}
    assert not other.notes


def altered(text: str, **changes: Any) -> str:
    return json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda _: "", "not JSON"),
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda _: "[" * 100_000, "not JSON"),
        (lambda _: "[1, 2]", "another version"),
        (lambda text: altered(text, schema=0), "another version"),
        (lambda text: altered(text, environment={"mlx": "9"}), "another environment"),
        (lambda text: altered(text, records={"a": {"n": 2}}), "altered or damaged"),
        (lambda text: text.replace('"n": 1', '"n": 9'), "altered or damaged"),
        (lambda text: altered(text, records=None), "altered or damaged"),
    ],
)
def test_bad_files_are_ignored_with_a_note_and_replaced(
    damage: Any, note: str, tmp_path: Path
) -> None:
    path = filled(tmp_path)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    kept = Store(tmp_path, ENVIRONMENT)
    assert kept.records() == {}
    assert len(kept.notes) == 1
    assert note in kept.notes[0]
    assert str(path) in kept.notes[0]
    kept.put("b", {"n": 2})
    assert Store(tmp_path, ENVIRONMENT).records() == {"b": {"n": 2}}


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in Store(tmp_path, ENVIRONMENT).notes[0]


def test_a_folder_in_the_file_s_place(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.unlink()
    path.mkdir()
    kept = Store(tmp_path, ENVIRONMENT)
    kept.put("b", {"n": 2})
    assert kept.get("b") == {"n": 2}
    assert len(kept.notes) == 2  # neither read nor written
    assert not left_over(tmp_path) or path.is_dir()


@pytest.mark.parametrize("place", ["under a file", "/proc/nothing/here", "/dev/null/x"])
def test_places_where_nothing_can_be_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    where = tmp_path / "file" / "cache" if place == "under a file" else tmp_path.joinpath(place)
    kept = Store(where, ENVIRONMENT)
    kept.put("a", {"n": 1})
    assert kept.get("a") == {"n": 1}, "it lives as long as the process"
    assert "cannot be written" in kept.notes[0]
    with kept.measuring(1.0) as mine:
        assert mine


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path)
    before = path.read_bytes()
    kept = Store(tmp_path, ENVIRONMENT)
    with monkeypatch.context() as patch:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(json, "dump", full)
        kept.put("b", {"n": 2})
    assert "No space left" in kept.notes[0]
    assert path.read_bytes() == before
    assert not left_over(tmp_path)
    kept.put("c", {"n": 3})  # there is room again: what could not be written is
    assert set(Store(tmp_path, ENVIRONMENT).records()) == {"a", "b", "c"}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_write_that_the_system_cuts_off(tmp_path: Path) -> None:
    path = filled(tmp_path)
    before = path.read_bytes()
    code = f"""
import pathlib, resource
from qwen_mfa.selection.store import Store
kept = Store(pathlib.Path({str(tmp_path)!r}), {ENVIRONMENT!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
kept.put("b", {{"text": "x" * 100000}})
print(kept.notes, len(kept.records()))
"""
    done = python(code)
    assert "cannot be written (File too large)" in done.stdout, done.stderr
    assert done.stdout.strip().endswith("2")
    assert path.read_bytes() == before
    assert not left_over(tmp_path)


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
from qwen_mfa.selection.store import Store
kept = Store(pathlib.Path({str(tmp_path)!r}), {ENVIRONMENT!r})
for i in range(15):
    kept.put(f"{{sys.argv[1]}} {{i}}", {{"n": i}})
assert not kept.notes, kept.notes
"""
    children = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(6)]
    assert [child.wait(60) for child in children] == [0] * 6
    kept = Store(tmp_path, ENVIRONMENT)
    assert not kept.notes
    assert len(kept.records()) == 6 * 15
    assert not left_over(tmp_path)


def test_killed_while_writing(tmp_path: Path) -> None:
    """Whatever moment a writer dies at, the file is whole, and its leftovers go away."""
    filled(tmp_path)
    code = f"""
import pathlib
from qwen_mfa.selection.store import Store
kept = Store(pathlib.Path({str(tmp_path)!r}), {ENVIRONMENT!r})
print("on", flush=True)
for i in range(100000):
    kept.put("b", {{"text": "x" * 50000}})
"""
    for pause in (0.0, 0.011, 0.023, 0.031):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(pause)
            child.kill()
        kept = Store(tmp_path, ENVIRONMENT)
        assert not kept.notes
        assert kept.get("a") == {"n": 1}
    kept.put("c", {"n": 3})
    assert not left_over(tmp_path)


def test_only_one_process_measures(tmp_path: Path) -> None:
    kept = Store(tmp_path, ENVIRONMENT)
    code = f"""
import pathlib
from qwen_mfa.selection.store import Store
with Store(pathlib.Path({str(tmp_path)!r}), {ENVIRONMENT!r}).measuring(60) as mine:
    print(mine, flush=True)
    input()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == b"True"
        with kept.measuring(0.1) as mine:
            assert not mine
        child.kill()  # its right dies with it
        child.wait()
    with kept.measuring(5) as mine:
        assert mine


def test_clocks_that_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path)
    for moment in (0, 4102444800):  # 1970 and 2100
        os.utime(path, (moment, moment))
        monkeypatch.setattr(time, "time", lambda moment=moment: float(moment))
        kept = Store(tmp_path, ENVIRONMENT)
        assert kept.get("a") == {"n": 1}
        kept.put("b", {"n": moment})
        assert Store(tmp_path, ENVIRONMENT).get("b") == {"n": moment}


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MFA_CACHE_DIR", str(tmp_path))
    settings.current.forget()
    assert store.folder() == tmp_path
    monkeypatch.delenv("QWEN_MFA_CACHE_DIR")
    settings.current.forget()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    places = {"linux": ".cache/qwen-mfa", "darwin": "Library/Caches/qwen-mfa"}
    for platform, place in places.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert store.folder() == tmp_path / place
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert store.folder() == tmp_path / "elsewhere" / "qwen-mfa"
