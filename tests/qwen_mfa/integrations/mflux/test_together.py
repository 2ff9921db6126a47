"""mflux's own pictures by two and four real processes, over MLX's ring on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_mfa.integrations.mflux import together
from tests.qwen_mfa.integrations.distributed import ranks

pytestmark = pytest.mark.cpu

QWEN_MFA = str(Path(sys.executable).parent / "qwen-mfa")
ROOT = Path(__file__).resolve().parents[4]
PICTURES = [sys.executable, "-m", "tests.qwen_mfa.integrations.mflux.small_pictures"]
GENERATE = ["-m", "tests.qwen_mfa.integrations.mflux.small_generate", "--prompt", "a cat"]
GENERATE += ["--negative-prompt", "a dog", "--steps", "2", "--height", "128", "--width", "128"]
# The same way on every rank and alone, so that every bit is the same.
SETTLED = {"QWEN_MFA_TEST_OPTIONS": json.dumps({"fused_blocks": "off"})}


def alone(kind: str) -> str:
    done = subprocess.run(
        [*PICTURES, kind],
        cwd=ROOT,
        env={**os.environ, **SETTLED},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "size"),
    [("plain", 4), ("edit", 2), ("8-bit", 2), ("lora", 2), ("guidance-1", 2)],
)
def test_latents_are_those_of_one_process_in_every_bit(
    kind: str, size: int, tmp_path: Path
) -> None:
    started = ranks.start([*PICTURES, kind], size, tmp_path, cwd=ROOT, env=SETTLED)
    expected = alone(kind)
    assert expected.startswith("latents ")
    for each in ranks.finish(started):
        assert each.status == 0, each.err
        assert each.out.splitlines()[-1] == expected


def test_other_weights_on_one_rank_are_refused(tmp_path: Path) -> None:
    env = {**SETTLED, "QWEN_MFA_TEST_ODD": "1"}
    for each in ranks.finish(ranks.start([*PICTURES, "plain"], 2, tmp_path, cwd=ROOT, env=env)):
        assert each.status == 1
        assert "DistributedError" in each.err
        assert "weights: rank 0 has" in each.err
        assert "latents (--seed): rank" not in each.err


def test_insisting_on_a_group_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in together.group.LAUNCHED_BY:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(together.DistributedError, match="started alone"):
        together.Membership().team("guidance")
    assert together.Membership().team("auto") is None


def command(folder: Path) -> list[str]:
    words = [QWEN_MFA, "run", "--fused-blocks", "off", "--json", str(folder / "report.json"), "--"]
    return [*words, *GENERATE, "--output", str(folder / "picture.png")]


def generate(folder: Path, *words: str) -> list[subprocess.Popen[str]]:
    return ranks.start([*command(folder), *words], 2, folder, cwd=ROOT)


def test_run_writes_one_picture_and_the_others_say_that_they_took_part(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    first, second = ranks.finish(generate(tmp_path / "two", "--seed", "5", "--metadata"))
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "rank 0 of 2 took part in 2 steps" in first.err
    assert second.out == ""
    assert second.err.startswith("qwen-mfa: rank 1 of 2 took part in 2 steps")
    assert len(second.err.splitlines()) == 1
    report = json.loads((tmp_path / "two" / "report.json").read_text(encoding="utf-8"))
    assert report["distributed"]["rank"] == 0
    subprocess.run(
        [*command(tmp_path / "one"), "--seed", "5"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert _pixels(tmp_path / "two" / "picture.png") == _pixels(tmp_path / "one" / "picture.png")


def test_other_arguments_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    words = [QWEN_MFA, "run", "--", "-m", "no_such_module_is_ever_imported"]
    script = (
        f"import os, sys; os.execv({QWEN_MFA!r}, {words!r} + ['--seed', os.environ['MLX_RANK']])"
    )
    started = ranks.start([sys.executable, "-c", script], 2, tmp_path, cwd=tmp_path)
    for each in ranks.finish(started):
        assert each.status != 0
        assert "arguments: rank 0 has" in each.err
        assert "no_such_module" in each.err
        assert "ModuleNotFound" not in each.err


@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGINT), (1, signal.SIGKILL)])
def test_a_rank_that_is_stopped_ends_the_other(
    tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    """Ctrl-C at rank 0, and the death of rank 1: nothing is written, and the other names it."""
    started = generate(tmp_path, "--seed", "5", "--steps", "100000")
    time.sleep(8)  # loaded, and somewhere in its steps
    assert [each.poll() for each in started] == [None, None]
    start = time.monotonic()
    started[victim].send_signal(number)
    ended = ranks.finish(started)
    assert time.monotonic() - start < 20
    other = ended[1 - victim]
    assert other.status == 1, other
    assert f"rank {victim} on " in other.err
    assert not list(tmp_path.glob("*.png"))


def _pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()
