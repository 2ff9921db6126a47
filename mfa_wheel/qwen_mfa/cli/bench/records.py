"""What a benchmark found: kept on disk while it runs, shown as a table, Markdown or JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_mfa.cli.table import mebibytes, seconds, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qwen_mfa.cli.bench.rounds import Spread


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contestant in one case.

    Attributes:
        contestant: Its name.
        skipped: Why it was not measured, if it was not.
        rounds: Measured rounds.
        seconds: Time of a call.
        gflops: Of the unmasked problem's operations: what masks save shows as more.
        of_peak: Fraction of the multiply-add peak, measured in the same rounds.
        gain: time(mlx) / time(this), within each round.
        memory: Peak growth of resident memory in bytes, the result included.

    """

    contestant: str
    skipped: str | None = None
    rounds: int = 0
    seconds: Spread | None = None
    gflops: float | None = None
    of_peak: float | None = None
    gain: Spread | None = None
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem. ``noise``: time(mlx) / time(mlx again), the reference against itself."""

    shape: str
    sizes: dict[str, int]
    dtype: str
    mask: str
    peak_gflops: float | None = None
    noise: Spread | None = None
    entries: tuple[Entry, ...] = ()


@dataclass(kw_only=True)
class Report:
    """Everything so far; ``complete`` turns true at the end."""

    bench: str
    machine: dict[str, Any]
    complete: bool = False
    cases: list[Case] = field(default_factory=list)

    def as_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=1)

    def save(self, path: Path) -> None:
        """Write the report to ``path``, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(self.as_json() + "\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


HEADER = ["contestant", "time", "quartiles", "GFLOP/s", "of peak", "MLX / it", "memory", "rounds"]


def cells(entry: Entry) -> list[str]:
    """Return the cells of one line."""
    if entry.seconds is None:
        return [entry.contestant, "-", "-", "-", "-", "-", "-", entry.skipped or "not reached"]
    time, gain = entry.seconds, entry.gain
    return [
        entry.contestant,
        seconds(time.median),
        f"{seconds(time.low)} to {seconds(time.high)}",
        "-" if entry.gflops is None else f"{entry.gflops:.1f}",
        "-" if entry.of_peak is None else f"{entry.of_peak:.2f}",
        "-" if gain is None else f"{gain.median:.2f} x",
        "-" if entry.memory is None else mebibytes(entry.memory),
        str(entry.rounds),
    ]


def title(case: Case) -> str:
    """Return one line that says what was measured."""
    sizes = " ".join(f"{key} {value}" for key, value in case.sizes.items())
    line = f"{case.shape}: {sizes}, {case.dtype}, mask {case.mask}"
    if case.peak_gflops is not None:
        line += f"; multiply-add peak {case.peak_gflops:.0f} GFLOP/s"
    if case.noise is not None:
        line += f"; noise: MLX against itself {case.noise.low:.2f} to {case.noise.high:.2f} x"
    return line


def as_text(cases: Sequence[Case]) -> str:
    """Lay the cases out as plain-text tables."""
    return "\n\n".join(
        f"{title(case)}\n{table(HEADER, [cells(entry) for entry in case.entries])}"
        for case in cases
    )


def as_markdown(cases: Sequence[Case]) -> str:
    """Lay the cases out as Markdown tables."""
    blocks = []
    for case in cases:
        rows = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)]]
        rows += [cells(entry) for entry in case.entries]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        blocks.append(f"**{title(case)}**\n\n{lines}")
    return "\n\n".join(blocks)
