"""What the dispatcher costs: our function against calling MLX's directly, as ratios.

The steady state: what has to be decided was decided before. Times are medians of interleaved
rounds; the range is that of the quartiles; imports count CPU time. A pipeline is q, k and v from
projections, attention, and the projection of its result, evaluated once at the end. The noise
floor is MLX against itself, measured in the same way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

import qwen_mfa
from qwen_mfa.cli.bench.common import Progress, count
from qwen_mfa.cli.bench.rounds import Rounds, Spread, interleave
from qwen_mfa.cli.table import markdown, table
from qwen_mfa.problem import Problem
from qwen_mfa.selection import choose
from qwen_mfa.validation.inputs import draw

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator


OURS, DIRECT = "qwen-mfa", "mlx"
HEADER = ["", "MLX alone", "with qwen-mfa", "ratio", "quartiles", "added"]
EXPECTED = 12  # comparisons, about
_FIRST_USE = "import qwen_mfa; qwen_mfa.scaled_dot_product_attention"
# Before and after; what hosts have imported anyway is for nobody's account.
_IMPORTS = {
    "import, after mlx.core": ("import mlx.core", "import qwen_mfa"),
    "first use, after mlx.core": ("import mlx.core", _FIRST_USE),
    "first use, after mlx.nn": ("import mlx.core, mlx.nn", _FIRST_USE),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One comparison; times in microseconds.

    Attributes:
        what: In words.
        direct: Time without us.
        ours: Time with us.
        ratio: Of the two, within each round.
        added: What we add, within each round.

    """

    what: str
    direct: Spread
    ours: Spread
    ratio: Spread
    added: Spread


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--rounds", type=count, default=25, help="rounds (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")


def run(args: argparse.Namespace) -> int:
    """Measure and print; what there is when it is interrupted."""
    lines: list[Line] = []
    progress = Progress()
    try:
        for line in measure(args.rounds):
            lines.append(line)
            progress(min(len(lines) / EXPECTED, 1), line.what)
    finally:
        progress.clear()
        if args.json:
            print(json.dumps([asdict(line) for line in lines], indent=2))
        else:
            print(markdown(HEADER, rows(lines)) if args.markdown else as_text(lines))
    return 0


def measure(rounds: int) -> Iterator[Line]:
    """Give one comparison after the other."""
    yield from imports(rounds)
    yield from calls(rounds)


def as_text(lines: list[Line]) -> str:
    """Lay the comparisons out as a table."""
    return table(HEADER, rows(lines))


def rows(lines: list[Line]) -> list[list[str]]:
    """Return the comparisons as the cells of a table."""
    return [
        [
            line.what,
            _time(line.direct.median),
            _time(line.ours.median),
            f"{line.ratio.median:.3f}",
            f"{line.ratio.low:.3f} to {line.ratio.high:.3f}",
            _time(line.added.median),
        ]
        for line in lines
    ]


def imports(rounds: int) -> Iterator[Line]:
    """Compare imports, each in a new process."""
    for what, (first, then) in _IMPORTS.items():
        pairs = [_imported(first, then) for _ in range(max(1, rounds // 3))]
        yield _line(
            what,
            Rounds(
                times={
                    DIRECT: [alone for alone, _ in pairs],
                    OURS: [alone + more for alone, more in pairs],
                }
            ),
        )


def calls(rounds: int) -> Iterator[Line]:
    """Compare calls, with MLX's kernel chosen and with a native one, if there is one."""
    tiny, large = _problem(2, 4, 64), _problem(4, 512, 128)
    attention = mx.fast.scaled_dot_product_attention
    yield _line("noise floor, tiny call", _compare(tiny, rounds, 200, _evaluated, attention))
    yield _line("noise floor, large call", _compare(large, rounds, 1, _evaluated, attention))
    with qwen_mfa.use("mlx"):
        yield _line("tiny call, not evaluated", _compare(tiny, rounds, 2000, _built))
        yield _line("tiny call, evaluated", _compare(tiny, rounds, 200, _evaluated))
        yield _line("tiny pipeline", _compare(tiny, rounds, 100, _pipeline))
        yield _line("large call, evaluated", _compare(large, rounds, 1, _evaluated))
        yield _line("large pipeline", _compare(large, rounds, 1, _pipeline))
    for problem, number in ((_problem(24, 64, 128), 20), (_problem(24, 512, 128), 1)):
        choice = choose.choose(problem)
        if choice.kernel.name != DIRECT:
            what = f"kernel {choice.kernel.name} itself, {problem.seq_q} tokens"
            yield _line(what, _against_kernel(problem, rounds, number))


def _problem(heads: int, tokens: int, dim: int) -> Problem:
    return Problem(
        batch=1,
        heads_q=heads,
        heads_kv=heads,
        seq_q=tokens,
        seq_kv=tokens,
        head_dim=dim,
        value_dim=dim,
        dtype="float32",
    )


def _compare(
    problem: Problem,
    rounds: int,
    number: int,
    make: Callable[..., Callable[[], object]],
    attention: Callable[..., mx.array] = qwen_mfa.scaled_dot_product_attention,
) -> Rounds:
    contestants = {
        DIRECT: make(problem, mx.fast.scaled_dot_product_attention),
        OURS: make(problem, attention),
    }
    return interleave(contestants, rounds=rounds, repeats=dict.fromkeys(contestants, number))


def _against_kernel(problem: Problem, rounds: int, number: int) -> Rounds:
    kernel, call = choose.choose(problem).kernel, draw(problem).call
    contestants = {
        DIRECT: lambda: mx.eval(kernel.run(call)),
        OURS: _evaluated(problem, qwen_mfa.scaled_dot_product_attention),
    }
    return interleave(
        contestants, rounds=rounds, warm_up=3, repeats=dict.fromkeys(contestants, number)
    )


def _built(problem: Problem, attention: Callable[..., mx.array]) -> Callable[[], object]:
    call = draw(problem).call
    return lambda: attention(call.q, call.k, call.v, scale=call.scale)


def _evaluated(problem: Problem, attention: Callable[..., mx.array]) -> Callable[[], object]:
    built = _built(problem, attention)
    return lambda: mx.eval(built())


def _pipeline(problem: Problem, attention: Callable[..., mx.array]) -> Callable[[], object]:
    heads, tokens, dim = problem.heads_q, problem.seq_q, problem.head_dim
    x = mx.random.normal((1, tokens, dim))
    weights = [mx.random.normal((dim, heads * dim)) for _ in range(3)]
    last = mx.random.normal((heads * dim, dim))
    mx.eval(x, weights, last)

    def work() -> None:
        q, k, v = (
            (x @ weight).reshape(1, tokens, heads, dim).transpose(0, 2, 1, 3) for weight in weights
        )
        out = attention(q, k, v, scale=dim**-0.5)
        mx.eval(out.transpose(0, 2, 1, 3).reshape(1, tokens, heads * dim) @ last)

    return work


def _line(what: str, rounds: Rounds) -> Line:
    micro = {name: [t * 1e6 for t in times] for name, times in rounds.times.items()}
    pairs = list(zip(micro[DIRECT], micro[OURS], strict=True))
    return Line(
        what=what,
        direct=Spread.of(micro[DIRECT]),
        ours=Spread.of(micro[OURS]),
        ratio=Spread.of([ours / direct for direct, ours in pairs]),
        added=Spread.of([ours - direct for direct, ours in pairs]),
    )


def _imported(first: str, then: str) -> tuple[float, float]:
    """Return the CPU seconds that ``first`` takes in a new process, and ``then`` after it."""
    code = (
        "import json, time; a = time.process_time()\n"
        f"{first}\nb = time.process_time()\n{then}\nc = time.process_time()\n"
        "print(json.dumps([b - a, c - b]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first_seconds, then_seconds = json.loads(done.stdout)
    return first_seconds, then_seconds


def _time(micro: float) -> str:
    size = abs(micro)
    if size < 1e3:
        return f"{micro:.1f} us"
    return f"{micro / 1e3:.1f} ms" if size < 1e6 else f"{micro / 1e6:.2f} s"
