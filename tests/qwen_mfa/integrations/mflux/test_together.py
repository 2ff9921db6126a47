"""mflux's own pictures by two and four real processes, over MLX's ring on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_mfa.cli import run
from qwen_mfa.integrations.distributed.heads import PART, Finding
from qwen_mfa.integrations.mflux import together
from tests.qwen_mfa.integrations.distributed import ranks
from tests.qwen_mfa.integrations.mflux.conftest import LAYERS, STEPS

pytestmark = pytest.mark.cpu

QWEN_MFA = str(Path(sys.executable).parent / "qwen-mfa")
ROOT = Path(__file__).resolve().parents[4]
FUSED = "guidance-1+fused"
KINDS = ["plain", "edit", "8-bit", "lora", "guidance-1", FUSED]
PICTURES = [sys.executable, "-m", "tests.qwen_mfa.integrations.mflux.small_pictures"]
GENERATE = ["-m", "tests.qwen_mfa.integrations.mflux.small_generate", "--prompt", "a cat"]
GENERATE += ["--negative-prompt", "a dog", "--steps", "2", "--height", "128", "--width", "128"]
# The same way on every rank and alone, so that every bit is the same.
SETTLED = {"QWEN_MFA_TEST_OPTIONS": json.dumps({"fused_blocks": "off"})}


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """The digests that one process has of every kind of picture."""
    done = subprocess.run(
        [*PICTURES, *KINDS],
        cwd=ROOT,
        env={**os.environ, **SETTLED},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    *lines, fused, last = done.stdout.splitlines()
    assert last == "heads {}"
    assert int(fused.removeprefix("fused ")) > LAYERS
    found = dict(line.split() for line in lines)
    # Of small models on a CPU, fused blocks happen to have the bits of others.
    assert len({x for kind, x in found.items() if kind != FUSED}) == len(KINDS) - 1
    return found


@pytest.mark.parametrize(
    ("size", "kinds", "heads"),
    [
        # Fused: attention is shared between the two compiled halves of a block.
        (2, [*KINDS, "guidance-1+heads", f"{FUSED}+heads"], 2),
        # Two ranks have each pass, and one head each of its two.
        (4, ["plain+heads"], 1),
    ],
    ids=["2", "4"],
)
def test_latents_are_those_of_one_process_in_every_bit(
    alone: dict[str, str], size: int, kinds: list[str], heads: int, tmp_path: Path
) -> None:
    expected = [f"{kind} {alone[kind.removesuffix('+heads')]}" for kind in kinds]
    started = ranks.start([*PICTURES, *kinds], size, tmp_path, cwd=ROOT, env=SETTLED)
    for each in ranks.finish(started):
        assert each.status == 0, each.err
        *lines, fused, last = each.out.splitlines()
        assert lines == expected
        assert (int(fused.removeprefix("fused ")) > 2 * LAYERS) == (FUSED in kinds)
        told = json.loads(last.removeprefix("heads "))
        assert list(told.values()) == [heads * STEPS * LAYERS], told
        assert next(iter(told)).startswith("split: a test asks for it (33 to 45 tokens, 2 heads")


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
    for how in ("guidance", "heads"):
        with pytest.raises(together.DistributedError, match=f"'{how}' needs .* started alone"):
            together.Membership().team(how)
    assert together.Membership().team("auto") is None


def command(folder: Path, *options: str) -> list[str]:
    words = [QWEN_MFA, "run", "--fused-blocks", "off", "--json", str(folder / "report.json")]
    return [*words, *options, "--", *GENERATE, "--output", str(folder / "picture.png")]


def generate(folder: Path, how: str, *words: str) -> list[subprocess.Popen[str]]:
    return ranks.start([*command(folder, "--distributed", how), *words], 2, folder, cwd=ROOT)


def launched(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start two ranks as the documentation says: by mlx.launch itself, from another folder."""
    launcher = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "--backend", "ring"]
    # Two in a row from where nothing listens; the launcher counts up from the first.
    launcher += ["--starting-port", str(ranks.free_port_pair()), "--cwd", str(ROOT), "--"]
    return subprocess.Popen(
        [*launcher, *command(folder, "--distributed", "heads"), *words],
        cwd=folder,
        stdin=subprocess.PIPE,  # silent, as a terminal's; the launcher spins where it has ended
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_launched_ranks_write_one_picture_and_the_other_says_that_it_took_part(
    tmp_path: Path,
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    [done] = ranks.finish([launched(tmp_path / "two", "--seed", "5", "--metadata")])
    assert done.status == 0, done
    assert "rank 0 of 2 took part in 2 steps" in done.err
    said = [line for line in done.err.splitlines() if "rank 1 of 2" in line]
    assert len(said) == 1, done.err
    assert said[0].startswith("qwen-mfa: rank 1 of 2 took part in 2 steps")
    assert done.err.count("qwen-mfa: ") == 2, "rank 1 says one line"
    told = "heads not split: each rank computes a pass of its own, 2 times"
    assert done.err.count(told) == 2
    report = json.loads((tmp_path / "two" / "report.json").read_text(encoding="utf-8"))
    assert report["distributed"]["rank"] == 0
    assert report["distributed"]["heads"]["findings"] == []
    assert len(list((tmp_path / "two").glob("*.png"))) == 1
    subprocess.run(
        [*command(tmp_path / "one"), "--seed", "5"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert _pixels(tmp_path / "two" / "picture.png") == _pixels(tmp_path / "one" / "picture.png")


def test_a_rank_that_ends_later_is_waited_for_after_the_report(tmp_path: Path) -> None:
    """A laptop decodes longer than the machine beside it: no reason to call that a failure."""
    program = tmp_path / "late.py"
    program.write_text(
        "import os, time\n"
        "from qwen_mfa.integrations.distributed import group\n"
        "group.PART_LIMIT = 0.2\n"  # what a rank that failed waits for
        "time.sleep(2 * int(os.environ['MLX_RANK']))\n"
    )
    words = [QWEN_MFA, "run", "--json", str(tmp_path / "report.json"), "--", str(program)]
    for each in ranks.finish(ranks.start(words, 2, tmp_path, cwd=tmp_path)):
        assert each.status == 0, each.err
        assert "took part in 0 steps" in each.err
    assert (tmp_path / "report.json").is_file()


def test_what_was_found_out_about_heads_is_told() -> None:
    finding = Finding(
        title="46 to 64 tokens", split=True, reason="1.60 x as fast", whole=2, parts=1
    )
    seconds = {"attention": 0.0, "exchange": 0.0}
    found: Any = SimpleNamespace(
        team=SimpleNamespace(rank=0, size=2, names=("here", "there")),
        split=SimpleNamespace(steps=2, seconds={"passes": 1.0, "waiting": 0.5}),
        heads=SimpleNamespace(findings={1: finding}, seconds=seconds),
    )
    report: dict[str, Any] = {"summary": "said", "parts": {PART: {str(finding): 120}}}
    run._say_what_was_split(found, report)
    told = report["distributed"]["heads"]
    assert [each["split"] for each in told["findings"]] == [True]
    assert told["seconds"] == seconds
    assert "; heads split: 1.60 x as fast (46 to 64 tokens), 120 times" in report["summary"]


def _ranks_of(launcher: subprocess.Popen[str]) -> list[str]:
    """Return the states of the launched processes that have not ended."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pgid=,pid=,stat="], check=True, capture_output=True, text=True
    )
    members = [line.split() for line in listed.stdout.splitlines()]
    return [
        f"{pid} {state}"
        for group, pid, state in members
        if int(group) == launcher.pid and int(pid) != launcher.pid and not state.startswith("Z")
    ]


def test_ctrl_c_at_the_launcher_leaves_no_rank_behind(tmp_path: Path) -> None:
    """A terminal sends it to all processes of the group at once.

    The launcher itself may stay: its main thread can be interrupted between taking the lock of a
    queue and noting that it has (in Python's ``Condition.__enter__``), and its other threads then
    wait for that lock (seen with MLX 0.32.4, once in 60 times on a busy machine).
    """
    launcher = launched(tmp_path, "--seed", "5", "--steps", "100000")
    try:
        _wait_for_a_step(launcher)
        assert len(_ranks_of(launcher)) >= 2
        os.killpg(launcher.pid, signal.SIGINT)
        deadline = time.monotonic() + 60
        while (left := _ranks_of(launcher)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left
    finally:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.communicate(timeout=30)
    assert not list(tmp_path.glob("*.png"))


def test_other_arguments_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    words = [QWEN_MFA, "run", "--precision"]
    script = (
        "import os; odd = os.environ['MLX_RANK'] == '1'; "
        f"os.execv({QWEN_MFA!r}, {words!r} + ['bfloat16' if odd else 'host', '--', '-m', "
        "'no_such_module_is_ever_imported', '--seed', str(odd)])"
    )
    started = ranks.start([sys.executable, "-c", script], 2, tmp_path, cwd=tmp_path)
    for each in ranks.finish(started):
        assert each.status != 0
        assert "arguments: rank 0 has" in each.err
        assert "--precision: rank 0 has 'host', rank 1 has 'bfloat16'" in each.err
        assert "no_such_module" in each.err
        assert "ModuleNotFound" not in each.err


@pytest.mark.parametrize(
    ("victim", "number", "how", "guidance"),
    [(0, signal.SIGINT, "guidance", "4"), (1, signal.SIGKILL, "heads", "1")],
    ids=["guidance", "heads"],
)
def test_a_rank_that_is_stopped_ends_the_other(
    tmp_path: Path, victim: int, number: signal.Signals, how: str, guidance: str
) -> None:
    """Ctrl-C at rank 0, and the death of rank 1: nothing is written, and the other names it."""
    words = ["--seed", "5", "--steps", "100000", "--guidance", guidance]
    started = generate(tmp_path, how, *words)
    _wait_for_a_step(started[0])
    start = time.monotonic()
    started[victim].send_signal(number)
    ended = ranks.finish(started)
    assert time.monotonic() - start < 50  # the watchdog alone would take a minute or more
    other = ended[1 - victim]
    assert other.status == 1, other
    assert f"rank {victim} on " in other.err
    assert ("heads split: a test asks for it" in other.err) == (how == "heads")
    assert not list(tmp_path.glob("*.png"))


def _wait_for_a_step(process: subprocess.Popen[str]) -> None:
    """Read rank 0's progress until one of its 100,000 steps is done."""
    assert process.stderr is not None
    said = ""
    while "1/100000" not in said:
        character = process.stderr.read(1)
        assert character, said  # it has ended
        said += character


def _pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()
