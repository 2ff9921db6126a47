"""What others may have put into the cache: their files, links, FIFOs, devices, nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from qwen_mfa import settings
from qwen_mfa.native import library
from qwen_mfa.selection import store
from qwen_mfa.selection.decisions import Decisions
from qwen_mfa.selection.store import Store
from qwen_mfa.tuning.measure import Sample
from qwen_mfa.validation.validate import ValidationResult
from qwen_mfa.validation.variants import Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.cpu

ENVIRONMENT = {"mlx": "1"}
VARIANT = Variant(
    dtype="float32", mask="none", mask_axes="", relation="=", group=1, head_dim=64, value_dim=64,
    sinks=False, length=16,
)  # fmt: skip
SAMPLE = Sample(
    problem="p", seconds=0.5, seconds_mlx=1.0, gain=0.7, noise=0.02, pairs=7, reduced=False
)
ANOTHER_USER = 12345


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """End what waits for ever by an alarm of the system's."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def filled(place: Path) -> Path:
    kept = Store(place, ENVIRONMENT)
    kept.put("a", {"n": 1})
    assert not kept.notes
    return kept.path


# --- other users ---------------------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")


@as_root
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_another_user_owns_is_not_believed(what: str, tmp_path: Path) -> None:
    path = filled(tmp_path / "cache")
    os.chown(path if what == "file" else path.parent, ANOTHER_USER, ANOTHER_USER)
    kept = Store(path.parent, ENVIRONMENT)
    assert kept.records() == {}
    assert "belongs to another user" in kept.notes[0]
    if what == "folder":  # nor is anything written into it
        before = sorted(path.parent.iterdir())
        kept.put("b", {"n": 2})
        with kept.measuring(0.1) as mine:
            assert mine
        assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_can_write_to_is_not_believed(what: str, tmp_path: Path) -> None:
    path = filled(tmp_path / "cache")
    (path if what == "file" else path.parent).chmod(0o666 if what == "file" else 0o777)
    kept = Store(path.parent, ENVIRONMENT)
    assert kept.records() == {}
    assert "can be written to by others" in kept.notes[0]


def test_the_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.CACHE_DIR, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    before = os.umask(0)
    try:
        path = filled(store.folder())
    finally:
        os.umask(before)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o775)  # as an earlier version made it where umask is 002
    assert Store(store.folder(), ENVIRONMENT).records() == {"a": {"n": 1}}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = filled(tmp_path / "cache")
    elsewhere = tmp_path / "elsewhere.json"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    kept = Store(path.parent, ENVIRONMENT)
    assert kept.records() == {}
    assert "symbolic link" in kept.notes[0]
    before = elsewhere.read_bytes()
    kept.put("b", {"n": 2})
    assert not path.is_symlink()
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("purpose", ["write", "measure"])
def test_locks_follow_no_links(purpose: str, tmp_path: Path) -> None:
    """One made a file in the home of whoever ran into it."""
    kept = Store(tmp_path / "cache", ENVIRONMENT)
    kept.path.parent.mkdir(mode=0o700)
    victim = tmp_path / "victim"
    kept.path.with_suffix(f".{purpose}.lock").symlink_to(victim)
    kept.put("a", {"n": 1})
    with kept.measuring(0.1) as mine:
        assert mine
    assert not victim.exists()
    assert kept.get("a") == {"n": 1}
    assert kept.notes


def test_a_linked_folder_is_not_used(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(home)
    kept = Store(tmp_path / "cache", ENVIRONMENT)
    kept.put("a", {"n": 1})
    assert "symbolic link" in kept.notes[0]
    assert not list(home.iterdir())


# --- no regular files ----------------------------------------------------------------------------

ODD: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "8 GiB": lambda path: (path.touch(), os.truncate(path, 8 << 30)),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["records", "write lock", "measure lock"])
def test_what_is_no_file_counts_as_absent(odd: str, name: str, tmp_path: Path) -> None:
    if odd == "8 GiB" and name != "records":
        pytest.skip("nobody reads a lock")
    path = filled(tmp_path)
    place = path if name == "records" else path.with_suffix(f".{name.split(maxsplit=1)[0]}.lock")
    place.unlink(missing_ok=True)
    ODD[odd](place)
    kept = Store(tmp_path, ENVIRONMENT)
    kept.put("b", {"n": 2})
    with kept.measuring(0.1) as mine:
        assert mine
    assert kept.get("b") == {"n": 2}
    assert kept.notes


@pytest.mark.parametrize("odd", ODD)
def test_a_library_that_is_no_file(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "library.so"
    ODD[odd](path)
    monkeypatch.setenv(settings.LIBRARY, str(path))
    settings.current.forget()
    library.outcome.forget()
    with pytest.raises(library.LibraryError, match=r"cannot be read \(it is (not|larger)"):
        library.load()
    library.outcome.forget()


# --- malformed records ---------------------------------------------------------------------------

BAD_VALUES = [None, "0.7", "no", [], {}, 1e308, float("nan"), float("inf"), 10**400, -1, True, 0]


def survives(kept: Decisions) -> None:
    """Read whatever attention reads."""
    result = kept.validation("cpu", VARIANT, "cpu")
    assert result is None or result.ok in {True, False}
    for sample in kept.samples("cpu", "key", "cpu") or ():
        assert sample.wins in {True, False}
        assert str(sample)
    assert kept.standing("cpu") in {None, True, False}
    assert isinstance(kept.attempts("cpu", "key"), int)
    assert isinstance(kept.death("cpu"), str)
    assert isinstance(kept.failure("cpu"), str)


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
def test_malformed_values(value: Any, tmp_path: Path) -> None:
    kept = Decisions(Store(tmp_path, ENVIRONMENT))
    result = asdict(ValidationResult(ok=True))
    for field in result:
        kept.store.put(f"validation cpu cpu {VARIANT.key}", {**result, field: value})
        survives(kept)
        if field == "ok" and value is not True:
            assert kept.validation("cpu", VARIANT, "cpu") is None, "it would let a kernel run"
    sample = asdict(SAMPLE)
    for field in sample:
        kept.store.put("class cpu cpu key", {"samples": [{**sample, field: value}]})
        survives(kept)
    kept.store.put("class cpu cpu key", {"samples": value})
    kept.store.put("child cpu", {"survived": value, "reason": value})
    kept.store.put("attempt cpu key", {"count": value})
    kept.store.put("failure cpu", {"reason": value})
    survives(kept)
    survives(Decisions(Store(tmp_path, ENVIRONMENT)))


def test_what_is_malformed_is_told(tmp_path: Path) -> None:
    kept = Decisions(Store(tmp_path, ENVIRONMENT))
    kept.store.put("class cpu cpu key", {"samples": []})
    assert kept.samples("cpu", "key", "cpu") is None
    assert "'class cpu cpu key' is malformed" in kept.store.notes[0]


def test_what_is_well_formed_is_kept(tmp_path: Path) -> None:
    kept = Decisions(Store(tmp_path, ENVIRONMENT))
    kept.keep_validation(
        "cpu", VARIANT, "cpu", ValidationResult(ok=False, reason="x", error=float("nan"))
    )
    kept.keep_samples("cpu", "key", "cpu", [SAMPLE, SAMPLE])
    kept.keep_standing("cpu", "")
    again = Decisions(Store(tmp_path, ENVIRONMENT))
    found = again.validation("cpu", VARIANT, "cpu")
    assert found is not None
    assert not found.ok
    assert again.samples("cpu", "key", "cpu") == [SAMPLE, SAMPLE]
    assert again.standing("cpu") is True
    assert not again.store.notes


# --- forks ---------------------------------------------------------------------------------------


def test_a_forked_child_holds_no_locks(tmp_path: Path) -> None:
    """Neither what other threads held, nor the right to measure."""
    code = f"""
import os, pathlib, signal, threading
from qwen_mfa.kernels.metal import device, execute
from qwen_mfa.native import library
from qwen_mfa.selection import decisions
from qwen_mfa.selection.store import Store
place = pathlib.Path({str(tmp_path)!r})
kept = Store(place, {ENVIRONMENT!r})
inside, done = threading.Event(), threading.Event()
def hold():
    locks = (kept._lock, library.outcome._lock, decisions.opened._lock)
    with locks[0], locks[1], locks[2], device.checks._lock, execute._lock, execute.the_engine._lock:
        inside.set()
        done.wait()
threading.Thread(target=hold, daemon=True).start()
inside.wait()
with kept.measuring(1):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        kept.put("b", {{"n": 2}})
        library.load()
        decisions.opened()
        device.checks()
        with execute._lock, Store(place, {ENVIRONMENT!r}).measuring(0.1) as mine:
            os._exit(1 if mine else 0)
    assert os.waitpid(child, 0)[1] == 0
with kept.measuring(1):
    child = os.fork()
    if child == 0:
        signal.pause()
with kept.measuring(1) as mine:
    assert mine
os.kill(child, signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=40)


def test_a_lock_does_not_stay_with_a_forked_child(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from qwen_mfa.selection.store import Store
with Store(pathlib.Path({str(tmp_path)!r}), {ENVIRONMENT!r}).measuring(1):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        signal.pause()
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.wait(20) == -signal.SIGKILL
        try:
            with Store(tmp_path, ENVIRONMENT).measuring(1) as mine:
                assert mine
        finally:
            os.kill(child, signal.SIGKILL)


def test_json_that_is_not_records(tmp_path: Path) -> None:
    path = filled(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    for records in ([], "x", 3, {"a": 1}, {"a": []}):
        path.write_text(
            json.dumps({**content, "records": records, "sha256": store._digest(records)}),
            encoding="utf-8",
        )
        kept = Store(tmp_path, ENVIRONMENT)
        assert kept.records() == {}
        assert "malformed" in kept.notes[0]
