"""Attention split by heads over two real processes; how it is decided whether that is done."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

from qwen_mfa.errors import DistributedError
from qwen_mfa.integrations.distributed import group, heads
from qwen_mfa.integrations.distributed.watchdog import EXIT_STATUS

from . import ranks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cpu

# Three attentions in a row, the first one measured.
PROGRAM = """
import json, os, signal, sys
os.environ["QWEN_MFA_BACKEND"] = "mlx"  # which computes each head on its own
import mlx.core as mx
from qwen_mfa import scaled_dot_product_attention
from qwen_mfa.errors import DistributedError
from qwen_mfa.integrations.distributed import group
from qwen_mfa.integrations.distributed.heads import Heads, Work

team = group.join(limit=30)
limit = 60.0
found = Heads(team, lambda own: limit)
found.begin(Work())
q, k, v = (mx.random.normal((2, 4, 9, 16), key=mx.random.key(i)) for i in range(3))
mask = mx.where(mx.random.bernoulli(0.5, (1, 4, 9, 9), key=mx.random.key(3)), 0.0, -2.0)
expected = scaled_dot_product_attention(q, k, v, scale=0.25, mask=mask)
try:
    measured = found.attend(q, k, v, scale=0.25, mask=mask)
    split = found._split(
        lambda *args, **options: scaled_dot_product_attention(*args, scale=0.25, **options),
        q, k, v, mask,
    )
    limit = 2.0 if "hang" in sys.argv else limit
    if team.rank == 1 and len(sys.argv) > 1:
        os.kill(os.getpid(), getattr(signal, {"die": "SIGKILL", "hang": "SIGSTOP"}[sys.argv[1]]))
    found.find("again", lambda: expected, lambda: team.gather(expected, limit=found._limit(0))[0])
except DistributedError as error:
    sys.exit(str(error))
same = [bool(mx.array_equal(x, expected)) for x in (measured, split)]
(finding,) = found.findings.values()
print(json.dumps([same, str(finding), finding.whole, finding.parts, finding.same_bits]))
team.part()
"""


def test_a_measured_decision_is_the_same_on_all_ranks(tmp_path: Path) -> None:
    done = ranks.run_code(PROGRAM, 2, tmp_path)
    assert [each.status for each in done] == [0, 0], done
    told = [json.loads(each.out) for each in done]
    assert told[0] == told[1], "words and figures"
    same, finding, whole, parts, same_bits = told[0]
    assert same == [True, True]
    assert same_bits
    assert "9 to 11 tokens, 4 heads, float32" in finding
    assert whole > 0
    assert parts > 0


def test_a_rank_that_dies_ends_the_other(tmp_path: Path) -> None:
    survivor, dead = ranks.run_code(PROGRAM, 2, tmp_path, "die")
    assert dead.status == -signal.SIGKILL
    assert survivor.status == 1
    assert "rank 1 on " in survivor.err
    assert "has ended" in survivor.err


def test_a_rank_that_hangs_is_given_up(tmp_path: Path) -> None:
    survivor, stopped = ranks.start_code(PROGRAM, 2, tmp_path, "hang")
    out, err = survivor.communicate(timeout=ranks.TIMEOUT)
    stopped.kill()
    stopped.communicate()
    assert survivor.returncode == EXIT_STATUS, out + err
    assert "rank 1 on " in err
    assert "no sign of life" in err


class Scripted:
    """Stands in for a team of two: whatever this rank tells, both told what the script says."""

    def __init__(self, rounds: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
        self.rounds = rounds
        self.told = 0

    def gather(self, array: mx.array, *, limit: float) -> mx.array:
        if array.size == 1:
            return mx.broadcast_to(array, (2, 1))
        self.told += 1
        return mx.array(self.rounds[self.told - 1])


@pytest.mark.parametrize(
    ("rounds", "split", "words", "told"),
    [
        ([((3.0, 1.0), (4.0, 2.0))] * 7, True, "2.00 x as fast", 7),
        # Rank 0 alone would split: the slowest rank decides.
        ([((3.0, 1.0), (3.0, 3.5))] * 7, False, "0.86 x as fast is no gain", 2),
        ([((3.0, 2.9), (3.0, 2.9))] * 7, False, "1.03 x as fast is no gain", 7),
        ([((3.0, 9.0), (3.0, 9.0)), *[((3.0, 1.5), (3.0, 1.5))] * 6], True, "2.00 x as fast", 7),
        ([((3.0, 9.0), (3.0, 9.0)), *[((3.0, 4.0), (3.0, 1.5))] * 6], False, "no gain", 2),
    ],
    ids=["wins", "slowest", "too little", "one lost", "two lost"],
)
def test_splitting_must_win_on_the_slowest_rank(
    rounds: list[tuple[tuple[float, float], tuple[float, float]]],
    split: bool,
    words: str,
    told: int,
) -> None:
    team: Any = Scripted(rounds)
    found = heads.Heads(team, lambda _: 1.0)
    finding = found.find("these", lambda: mx.zeros(2), lambda: mx.zeros(2))
    assert finding.split == split
    assert words in str(finding)
    assert team.told == told
    assert finding.same_bits
    other = heads.Heads(Scripted(rounds), lambda _: 1.0)  # type: ignore[arg-type]
    finding = other.find("these", lambda: mx.zeros(2), lambda: mx.ones(2))
    assert "not the same bits" in str(finding)


def team_of(size: int) -> group.Team:
    names = tuple(map(str, range(size)))
    return group.Team(group=mx.distributed.init(backend="any"), rank=0, size=size, names=names)


def test_heads_that_cannot_be_shared_equally() -> None:
    found = heads.Heads(team_of(5), lambda _: 1.0)
    attend = found.begin(heads.Work())
    assert attend is not None
    x = mx.zeros((1, 24, 3, 8))
    with pytest.raises(
        DistributedError, match=r"24 heads .* 5 ranks: start 2, 3, 4, 6, 8, 12, 24 "
    ):
        attend(x, x, x, scale=1.0)
    assert found.begin(heads.Work(passes=2)) is None, "an odd number: guidance alone"
    assert heads.Heads(team_of(2), lambda _: 1.0).begin(heads.Work(passes=2)) is None


def test_grouped_keys_and_sinks_are_not_split() -> None:
    found = heads.Heads(team_of(2), lambda _: 1.0)
    q, k = mx.ones((1, 4, 3, 8)), mx.ones((1, 2, 3, 8))
    assert mx.array_equal(found.attend(q, k, k, scale=1.0), q)
    assert found.attend(q, q, q, scale=1.0, sinks=mx.zeros(4)).shape == q.shape
    assert not found.findings
