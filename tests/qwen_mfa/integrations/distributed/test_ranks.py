"""What two and four real processes do together, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from qwen_mfa.integrations.distributed import agreement, group, guidance
from qwen_mfa.integrations.distributed.watchdog import EXIT_STATUS

from . import ranks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cpu

# A pass that adds a number of its own; which rank computes it is seen on its output.
PROGRAM = """
import json, os, signal, sys, time
import mlx.core as mx
from qwen_mfa.errors import DistributedError
from qwen_mfa.integrations.distributed import group, guidance

class Pass:
    def __init__(self, latents, number):
        self.latents, self.number = latents, number
    def array(self):
        print("pass", self.number, flush=True)
        return mx.sin(self.latents * self.number)

team = group.join(limit=30)
split = guidance.Split(team, least=float(os.environ.get("LEAST", "30")))
facts = {"mlx": mx.__version__}
latents = mx.random.normal((1, 64, 16), key=mx.random.key(3))
what, at = sys.argv[1:3] if len(sys.argv) > 2 else ("".join(sys.argv[1:]), "0")
mine = team.rank == 1
if what == "facts" and mine:
    facts["mlx"] = "0.1\\n\\x1b[31mforged"
if what == "seed" and mine:
    latents = latents + 1
try:
    for step in range(3):
        if mine and step == int(at):
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
            if what == "raise":
                raise ValueError("a fault of this rank")
            if what == "drift":
                latents = latents + 1e-6
        positive, negative = split.both(
            (Pass(latents, 2.0), Pass(latents, 3.0)),
            latents=latents, picture=facts, facts=lambda: facts,
        )
        latents = negative + 4.0 * (positive - negative)
        mx.eval(latents)
except DistributedError as error:
    sys.exit(str(error))
print(json.dumps(latents.tolist()))
"""
ALONE = """
import json
import mlx.core as mx
latents = mx.random.normal((1, 64, 16), key=mx.random.key(3))
for step in range(3):
    positive, negative = mx.sin(latents * 2.0), mx.sin(latents * 3.0)
    latents = negative + 4.0 * (positive - negative)
    mx.eval(latents)
print(json.dumps(latents.tolist()))
"""


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_get_the_bits_of_one_process(tmp_path: Path, size: int) -> None:
    done = ranks.run_code(PROGRAM, size, tmp_path)
    alone = subprocess.run(
        [sys.executable, "-c", ALONE], check=True, capture_output=True, text=True, timeout=60
    )
    assert [each.status for each in done] == [0] * size, done
    for rank, each in enumerate(done):
        *passes, latents = each.out.splitlines()
        assert passes == [f"pass {2.0 if rank % 2 == 0 else 3.0}"] * 3
        assert latents == alone.stdout.strip()


@pytest.mark.parametrize("step", ["0", "2"])
def test_death_of_a_rank_ends_the_other_and_names_it(tmp_path: Path, step: str) -> None:
    start = time.monotonic()
    survivor, dead = ranks.run_code(PROGRAM, 2, tmp_path, "die", step)
    assert dead.status == -signal.SIGKILL
    assert survivor.status == 1
    assert "rank 1 on " in survivor.err
    assert "has ended" in survivor.err
    assert time.monotonic() - start < 30


def test_an_exception_in_a_rank_ends_the_other(tmp_path: Path) -> None:
    survivor, failed = ranks.run_code(PROGRAM, 2, tmp_path, "raise", "1")
    assert "a fault of this rank" in failed.err
    assert survivor.status == 1
    assert "rank 1 on " in survivor.err


def test_a_rank_that_hangs_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "ranks_program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    both = ranks.start(
        [sys.executable, str(file), "hang", "1"], 2, tmp_path, cwd=tmp_path, env={"LEAST": "2"}
    )
    out, err = both[0].communicate(timeout=ranks.TIMEOUT)
    both[1].kill()
    both[1].communicate()
    assert both[0].returncode == EXIT_STATUS, out + err
    assert "rank 1 on " in err
    assert "no sign of life" in err


def test_once_steps_are_known_a_rank_that_hangs_is_given_up_soon() -> None:
    team = group.Team(group=mx.distributed.init(backend="any"), rank=0, size=1, names=("here",))
    split = guidance.Split(team)
    assert split.limit(0.2) == pytest.approx(64)
    for waiting in (0.1, 0.3, 0.2):
        split.count(0.2, waiting)
    assert split.limit(0.2) == pytest.approx(25)
    split.count(0.2, 30)  # the other one is a slow machine
    assert split.limit(0.2) == pytest.approx(64)
    assert split.limit(20) == pytest.approx(20 + 302)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_never_appears_is_not_waited_for_ever(tmp_path: Path, rank: str) -> None:
    code = "from qwen_mfa.integrations.distributed import group\ngroup.join(limit=2)\n"
    ports = ranks.free_ports(2)
    hosts = json.dumps([[f"127.0.0.1:{port}"] for port in ports])
    (tmp_path / "hosts.json").write_text(hosts, encoding="utf-8")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MLX_HOSTFILE": str(tmp_path / "hosts.json"), "MLX_RANK": rank},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "the other processes did not appear within 2 s" in done.stderr
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("what", "named"), [("facts", "mlx: "), ("seed", "latents (--seed): ")])
def test_ranks_that_differ_are_refused_before_the_first_step(
    tmp_path: Path, what: str, named: str
) -> None:
    for each in ranks.run_code(PROGRAM, 2, tmp_path, what):
        assert each.status == 1
        assert named in each.err
        assert "pass" not in each.out
        assert "\x1b" not in each.err, "text from another machine is not printed raw"


def test_drift_is_an_error_and_not_a_picture(tmp_path: Path) -> None:
    for each in ranks.run_code(PROGRAM, 2, tmp_path, "drift", "2"):
        assert each.status == 1
        assert "after 2 steps the latents of rank 1 are not those of rank 0" in each.err


def test_alone_there_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in group.LAUNCHED_BY:
        monkeypatch.delenv(name, raising=False)
    assert group.join() is None


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.uint8])
def test_checksum_sees_every_bit_and_every_place(dtype: mx.Dtype) -> None:
    x = mx.arange(64).reshape(4, 16).astype(dtype)
    found = {tuple(agreement.checksum(x).tolist())}
    for i in range(64):
        changed = x.flatten()
        changed[i] = changed[i] + 1
        found.add(tuple(agreement.checksum(changed).tolist()))
    swapped = x.flatten()[mx.array([1, 0, *range(2, 64)])]
    found.add(tuple(agreement.checksum(swapped).tolist()))
    assert len(found) == 66


def test_checksum_reads_a_transposed_array_in_its_own_order() -> None:
    x = mx.arange(12, dtype=mx.float32).reshape(3, 4)
    assert agreement.digest(x.T) == agreement.digest(mx.contiguous(x.T))
    assert agreement.digest(x.T) != agreement.digest(x)
