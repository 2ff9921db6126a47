"""Ends, kills, forks and forged caches, each many times; prints how often it went which way.

Not collected by a plain `pytest`, by its name. docs/reliability.md has the outcome.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from qwen_mfa import settings
from qwen_mfa.selection.decisions import Decisions
from qwen_mfa.selection.store import Store
from qwen_mfa.validation.validate import ValidationResult
from tests.qwen_mfa.selection.test_hostile import ENVIRONMENT, SAMPLE, VARIANT, survives
from tests.standins import faulty

NOBODY = 12345
ABORTED_BY_MLX = "terminate called without an active exception"


def run(code: str, *arguments: str, seconds: float = 60, **env: str) -> tuple[str, str]:
    """Run ``code``; return how it ended in a word, and what it printed."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hung", ""
    if ABORTED_BY_MLX in done.stderr:
        return "aborted by MLX", done.stdout
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name, done.stdout
    return "well" if done.returncode == 0 else f"status {done.returncode}", done.stdout


def tell(title: str, counts: Counter[str]) -> None:
    sys.stdout.write(f"\n{title}: {', '.join(f'{n} {how}' for how, n in counts.most_common())}\n")


# --- the end of the interpreter -------------------------------------------------------------------

ENDING = """
import sys, threading, time
import mlx.core as mx
import qwen_mfa
q = mx.random.normal((1, 4, 300, 64))
mx.eval(q)
def attend():
    attention = mx.fast if sys.argv[1] == "MLX" else qwen_mfa
    stream = mx.new_stream(mx.cpu) if sys.argv[1] == "MLX" else None
    while True:
        mx.eval(attention.scaled_dot_product_attention(q, q, q, scale=0.125, stream=stream))
qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.125)
threading.Thread(target=attend, daemon=True).start()
time.sleep(0.1)
"""


def test_exit_under_a_daemon_thread() -> None:
    for whose in ("ours", "MLX"):
        counts = Counter(run(ENDING, whose, QWEN_MFA_BACKEND="cpu")[0] for _ in range(40))
        tell(f"exit while a daemon thread attends, {whose}", counts)
        if whose == "ours":
            assert set(counts) <= {"well", "aborted by MLX"}


# --- forks ----------------------------------------------------------------------------------------

FORKING = """
import json, os, sys, threading, time
import mlx.core as mx
import qwen_mfa
q = mx.random.normal((1, 4, 300, 64))
mx.eval(q)
def attend():
    return qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.125)
def loop():
    while True:
        memoryview(attend())
for _ in range(3):
    threading.Thread(target=loop, daemon=True).start()
hung = {"in ours": 0, "in MLX after ours": 0, "in MLX's own": 0}
for i in range(10):
    time.sleep(0.03 * i)
    returned, end = os.pipe()
    child = os.fork()
    if child == 0:
        by_mlx = qwen_mfa.stats().calls.get("mlx", 0)
        result = attend()
        # Before the parent has validated a kernel, and in children that may not, MLX computes.
        os.write(end, b"n" if qwen_mfa.stats().calls.get("mlx", 0) == by_mlx else b"m")
        memoryview(result)
        os._exit(0)
    os.close(end)
    # Counted, not timed: both may be stopped for a while.
    ended = any(os.waitpid(child, os.WNOHANG)[0] or time.sleep(0.005) for _ in range(3000))
    if not ended:
        os.kill(child, 9)
        where = {b"": "in ours", b"n": "in MLX after ours", b"m": "in MLX's own"}
        hung[where[os.read(returned, 1)]] += 1
    os.close(returned)
print(json.dumps(hung), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("backend", ["auto", "cpu", "mlx"])
def test_forks_under_threads_that_attend(backend: str, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for index in range(10):
        place = str(tmp_path / str(index))
        how, said = run(FORKING, seconds=300, QWEN_MFA_BACKEND=backend, QWEN_MFA_CACHE_DIR=place)
        assert how == "well"
        hung = json.loads(said)
        counts.update({f"hung {where}": number for where, number in hung.items()})
        counts["answered"] += 10 - sum(hung.values())
    tell(f"forks, kernel {backend}", +counts)
    # MLX evaluates after our function has returned (its own kernel's result, or ours, which an
    # operation of MLX's hands on): through locks of its own, which another thread may hold.
    assert counts["hung in ours"] == 0
    assert counts["hung in MLX after ours"] <= 1
    assert counts["hung in MLX after ours"] + counts["hung in MLX's own"] <= 3


# --- killed in the first use ----------------------------------------------------------------------

FIRST_USE = """
import mlx.core as mx, qwen_mfa
print("on", flush=True)
q = mx.random.normal((1, 4, 300, 64))
ours = qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.125)
theirs = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.125)
assert mx.abs(ours - theirs).max().item() < 1e-5
"""


def test_kills_in_the_first_use(tmp_path: Path) -> None:
    chance = random.Random(1)  # noqa: S311 - of moments
    env = {**os.environ, settings.CACHE_DIR: str(tmp_path / "cache"), "QWEN_MFA_BACKEND": "auto"}
    counts: Counter[str] = Counter()
    for index in range(45):
        how = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)[index % 3]
        with subprocess.Popen(
            [sys.executable, "-c", FIRST_USE], env=env, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0, 2))
            child.send_signal(how)
            counts["killed" if child.wait() == -how else "done before"] += 1
    tell("kills in the first use", counts)
    assert run(FIRST_USE, **{settings.CACHE_DIR: env[settings.CACHE_DIR]})[0] == "well"
    (file,) = (tmp_path / "cache").glob("decisions-*.json")
    records: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["records"]
    assert not [key for key in records if key.startswith("attempt")]
    assert records["child cpu"]["survived"]


def test_a_hanging_library_leaves_no_orphan(tmp_path: Path) -> None:
    env = {
        **os.environ,
        settings.CACHE_DIR: str(tmp_path / "cache"),
        "QWEN_MFA_LIBRARY": str(faulty.build(tmp_path)),
        "QWEN_MFA_FAULT": "hang",
        "QWEN_MFA_BACKEND": "auto",
    }
    counts: Counter[str] = Counter()
    for how in [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP] * 5:
        with subprocess.Popen(
            [sys.executable, "-c", FIRST_USE], env=env, stdout=subprocess.PIPE
        ) as parent:
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
            while not (child := children.read_text(encoding="ascii").split()):
                time.sleep(0.02)
            time.sleep(1.5)
            parent.send_signal(how)
        end = time.monotonic() + 10
        while Path(f"/proc/{child[0]}").exists() and time.monotonic() < end:
            time.sleep(0.02)
        alive = Path(f"/proc/{child[0]}").exists()
        counts["orphans" if alive else "children ended"] += 1
        if alive:
            os.kill(int(child[0]), signal.SIGKILL)
    tell("parents killed while a library hangs", counts)
    assert counts["orphans"] == 0


# --- caches ---------------------------------------------------------------------------------------

# As another user: everything that can be put in the place of a folder or file, over and over.
STRANGER = """
import os, shutil, sys
place, ours, victim, file, user = sys.argv[1:]
os.setgid(int(user)); os.setuid(int(user))
def clean():
    try: os.unlink(place)
    except OSError: pass
    shutil.rmtree(place, ignore_errors=True)
while True:
    for trick in range(4):
        try:
            clean()
            if trick == 0: os.symlink(victim, place)
            if trick == 1: os.symlink(ours, place)
            if trick == 2: shutil.copytree(ours, place)
            if trick == 3:
                os.mkdir(place, 0o777)
                os.symlink(os.path.join(victim, file), os.path.join(place, file))
        except OSError: pass
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_stranger_in_a_race(tmp_path: Path) -> None:
    """In a folder that everybody can write to, a stranger swaps folders, files and links."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path(folder.anchor) and folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    shared, forged, victim = (tmp_path / name for name in ("shared", "forged", "victim"))
    shared.mkdir()
    shared.chmod(0o777)
    file = Store(forged, ENVIRONMENT).path.name
    Store(forged, ENVIRONMENT).put("a", {"forged": 1})
    for path in (forged, *forged.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    victim.mkdir(mode=0o755)
    place = shared / "cache"
    arguments = (str(place), str(forged), str(victim), file, str(NOBODY))
    counts: Counter[str] = Counter()
    with subprocess.Popen([sys.executable, "-c", STRANGER, *arguments]) as stranger:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            kept = Store(place, ENVIRONMENT)
            counts["reads"] += 1
            counts["strangers believed"] += "a" in kept.records()
            if counts["reads"] % 20 == 0:
                kept.put("b", {"n": 1})
                shutil.rmtree(place, ignore_errors=True)  # ours; the stranger's go on their own
        stranger.kill()
    tell("a stranger's cache", counts)
    assert counts["strangers believed"] == 0
    assert not list(victim.iterdir()), "something was written through a link"


def test_forged_records(tmp_path: Path) -> None:
    """Whatever the records hold, reading them neither raises nor hangs."""
    chance = random.Random(2)  # noqa: S311
    odd: list[Any] = [None, "", "no", [], {}, [[]], -1, 0, 1e308, float("nan"), 10**400, True, "1"]
    kept = Decisions(Store(tmp_path, ENVIRONMENT))
    counts: Counter[str] = Counter()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        whole: dict[str, Any] = {
            f"validation cpu cpu {VARIANT.key}": asdict(ValidationResult(ok=True)),
            "class cpu cpu key": {"samples": [asdict(SAMPLE)] * chance.randrange(4)},
            "child cpu": {"survived": True, "reason": ""},
            "attempt cpu key": {"count": 1},
            "failure cpu": {"reason": ""},
        }
        for record in whole.values():
            target = chance.choice([record, *(x for x in record.get("samples", []))])
            for _ in range(chance.randrange(3)):
                target[chance.choice([*target, "other"])] = chance.choice(odd)
        kept.store._records = whole
        survives(kept)
        counts["records"] += len(whole)
    tell("forged records", counts)


def test_forged_files(tmp_path: Path) -> None:
    """Bytes changed, cut, repeated: the file is ignored, or as good as before."""
    chance = random.Random(3)  # noqa: S311
    first = Store(tmp_path, ENVIRONMENT)
    first.put("a", {"n": 1})
    good = first.path.read_bytes()
    counts: Counter[str] = Counter()
    end = time.monotonic() + 15
    while time.monotonic() < end:
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(20)] = chance.randbytes(chance.randrange(20))
        first.path.write_bytes(data)
        found = Store(tmp_path, ENVIRONMENT).records()
        assert found in ({}, {"a": {"n": 1}})
        counts["ignored" if not found else "the same records"] += 1
    tell("forged files", counts)
