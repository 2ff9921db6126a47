"""What a benchmark found: kept on disk while it runs, shown as a table, Markdown or JSON."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_mfa import files
from qwen_mfa.cli.bench.rounds import Spread
from qwen_mfa.cli.table import markdown, mebibytes, rate, seconds, table
from qwen_mfa.errors import QwenMfaError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BYTES = 16 << 20  # a report has some 50 KiB


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contestant in one case.

    Attributes:
        contestant: Its name.
        skipped: Why it was not measured, if it was not.
        rounds: Measured rounds.
        seconds: Time of a call.
        gflops: Of the unmasked problem's operations: what masks save shows as more.
        of_peak: Fraction of the device's peak, measured in the same rounds.
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
    """One problem.

    Attributes:
        shape: Its name.
        sizes: What it is made of: B, H, Sq, Skv, D, or blocks and tokens.
        dtype: Element type.
        mask: Kind of mask.
        complete: Whether all rounds are in it.
        peak_gflops: What the device can reach, measured in the same rounds.
        peak_means: By doing what.
        noise: time(mlx) / time(mlx again), the reference against itself.
        entries: The contestants.
        conclusions: Sentences, and the figures in them.

    """

    shape: str
    sizes: dict[str, int]
    dtype: str
    mask: str
    complete: bool = True
    peak_gflops: float | None = None
    peak_means: str = "multiply-adds"
    noise: Spread | None = None
    entries: tuple[Entry, ...] = ()
    conclusions: dict[str, float | str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Queries."""
        return self.sizes["Sq"]


@dataclass(kw_only=True)
class Report:
    """Everything so far; ``complete`` turns true at the end."""

    bench: str
    machine: dict[str, Any]
    complete: bool = False
    cases: list[Case] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain dictionaries and lists."""
        return asdict(self)

    def as_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.as_dict(), indent=1)

    def save(self, path: Path, under_way: Case | None = None) -> None:
        """Write the report, and a case under way, to ``path``: whole or not at all."""
        if under_way is not None:
            replace(self, cases=[*self.cases, under_way]).save(path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file under a name that nobody could put a link at.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.as_json() + "\n")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def load(path: Path) -> Report:
    """Read a report that `Report.save` wrote.

    Raises:
        QwenMfaError: There is none, or it is no such report.

    """
    try:
        found = json.loads(files.read(path, MAX_BYTES))
        cases = [_case(case) for case in found.pop("cases")]
        return Report(**found, cases=cases)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        msg = f"{path} is no report of `qwen-mfa bench` ({error}); run one, or name another file"
        raise QwenMfaError(msg) from error


def _case(case: dict[str, Any]) -> Case:
    entries = tuple(
        Entry(**entry | {key: _spread(entry[key]) for key in ("seconds", "gain")})
        for entry in case["entries"]
    )
    return Case(**case | {"entries": entries, "noise": _spread(case["noise"])})


def _spread(values: dict[str, float] | None) -> Spread | None:
    return None if values is None else Spread(**values)


HEADER = ["contestant", "time", "quartiles", "rate", "of peak", "MLX / it", "memory", "rounds"]


def cells(entry: Entry) -> list[str]:
    """Return the cells of one line."""
    if entry.seconds is None:
        return [entry.contestant, "-", "-", "-", "-", "-", "-", entry.skipped or "not reached"]
    time, gain = entry.seconds, entry.gain
    return [
        entry.contestant,
        seconds(time.median),
        f"{seconds(time.low)} to {seconds(time.high)}",
        "-" if entry.gflops is None else rate(entry.gflops),
        "-" if entry.of_peak is None else f"{entry.of_peak:.2f}",
        "-" if gain is None else f"{gain.median:.2f} x",
        mebibytes(entry.memory),
        str(entry.rounds),
    ]


def title(case: Case) -> str:
    """Return one line that says what was measured."""
    sizes = " ".join(f"{key} {value}" for key, value in case.sizes.items())
    line = f"{case.shape}: {sizes}, {case.dtype}, mask {case.mask}"
    if case.peak_gflops is not None:
        line += f"; peak {rate(case.peak_gflops)} ({case.peak_means})"
    if case.noise is not None:
        line += f"; noise: MLX against itself {case.noise.low:.2f} to {case.noise.high:.2f} x"
    return line if case.complete else f"{line}; incomplete"


def as_text(cases: Sequence[Case]) -> str:
    """Lay the cases out as plain-text tables."""
    return "\n\n".join(
        "\n".join(
            [
                title(case),
                table(HEADER, [cells(entry) for entry in case.entries]),
                *_sentences(case),
            ]
        )
        for case in cases
    )


def as_markdown(cases: Sequence[Case]) -> str:
    """Lay the cases out as Markdown tables."""
    return "\n\n".join(
        "\n\n".join(
            [
                f"**{title(case)}**",
                markdown(HEADER, [cells(entry) for entry in case.entries]),
                *_sentences(case),
            ]
        )
        for case in cases
    )


def with_honest_peak(case: Case) -> Case:
    """Report a peak below what a contestant reached as the error that it is, and show none.

    Rates count every key, so masks that hide some say nothing about the peak.
    """
    reached, name = max(((x.gflops or 0.0, x.contestant) for x in case.entries), default=(0.0, ""))
    if case.peak_gflops is None or case.mask != "none" or reached <= case.peak_gflops:
        return case
    error = (
        f"ERROR: {name} reached {rate(reached)}, more than the peak of {case.peak_means} measured "
        f"beside it ({rate(case.peak_gflops)}): that was no peak, and none is shown. Measure again "
        "with nothing else running."
    )
    return replace(
        case,
        peak_gflops=None,
        entries=tuple(replace(entry, of_peak=None) for entry in case.entries),
        conclusions={**case.conclusions, "peak": error},
    )


def _sentences(case: Case) -> list[str]:
    return [text for text in case.conclusions.values() if isinstance(text, str)]
