"""What the benchmarks' command lines share."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_mfa.cli.arguments import check_writable, whole
from qwen_mfa.cli.bench import plot, records
from qwen_mfa.selection import store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from qwen_mfa.cli.bench.records import Case, Report

WIDTH = 24  # characters of the bar
EVERY = 30.0  # seconds between lines where there is no terminal to write over one


class Progress:
    """One line on a terminal with a bar, written over each time; elsewhere a line now and then."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = self._last = clock()

    def __call__(self, done: float, detail: str) -> None:
        """Show that the fraction ``done`` of everything is done, and ``detail`` is under way."""
        if sys.stderr.isatty():
            text = self.line(done, detail)
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif self._clock() - self._last >= EVERY:
            self._last = self._clock()
            print(f"{done:4.0%}  {detail}", file=sys.stderr, flush=True)

    def line(self, done: float, detail: str) -> str:
        """Return the line: bar, percentage, what is under way, and roughly how long it takes."""
        filled = int(done * WIDTH)
        bar = "#" * filled + "." * (WIDTH - filled)
        text = f"[{bar}] {done:4.0%}  {detail}"
        elapsed = self._clock() - self._start
        if 0 < done < 1 and elapsed > 1:
            text += f", about {_duration(elapsed / done - elapsed)} left"
        return text

    def clear(self) -> None:
        """Clear the line."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _prefix(text: str) -> Path:
    """Read what pictures are called; who names one of the two files means both."""
    path = Path(text)
    return path.with_suffix("") if path.suffix in {".png", ".svg"} else path


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


count = whole(1, 1000)  # of rounds, blocks or tokens


def add_formats(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how results are shown."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument(
        "--plot", type=_prefix, metavar="PREFIX", help="draw PREFIX.png and PREFIX.svg (matplotlib)"
    )


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how results are shown, and where they are kept."""
    add_formats(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="keep the JSON there, from the first round on (default: a file in the cache folder "
        "that `qwen-mfa bench show` finds)",
    )


def default_file(bench: str) -> Path:
    """Return where the latest results of a benchmark are kept when ``--out`` is not given."""
    return store.folder() / "bench" / f"{bench}.json"


def collect(
    report: Report,
    cases: Iterator[Case],
    args: argparse.Namespace,
    progress: Progress,
) -> None:
    """Fill ``report`` and keep it on disk after every round; print each case as it is complete.

    ``cases`` gives every case again after each of its rounds, with ``complete`` false until the
    last. An interruption shows what there is of the case under way before it goes on its way.
    """
    plain = not args.json and not args.markdown
    if args.plot:
        plot.require()
        check_writable(args.plot.with_name(f"{args.plot.name}.png"))
    if args.out:
        check_writable(args.out)
    under_way: Case | None = None
    kept = False
    try:
        for measured in cases:
            case = records.with_honest_peak(measured)
            under_way = None if case.complete else case
            kept = _keep(report, args, case)
            if case.complete:
                report.cases.append(case)
                if plain:
                    progress.clear()
                    print(records.as_text([case]), end="\n\n", flush=True)
    except KeyboardInterrupt:
        progress.clear()
        if under_way is not None and plain:
            print(records.as_text([under_way]))
        if kept:
            file = _file(report, args)
            print(f"Interrupted; `qwen-mfa bench show {file}` shows it again", file=sys.stderr)
        raise
    report.complete = True
    _keep(report, args)
    progress.clear()
    show(report, args)


def _file(report: Report, args: argparse.Namespace) -> Path:
    chosen: Path | None = args.out
    return default_file(report.bench) if chosen is None else chosen


def _keep(report: Report, args: argparse.Namespace, case: Case | None = None) -> bool:
    try:
        report.save(_file(report, args), case)
    except OSError:
        if args.out is not None:
            raise
        return False  # a cache that cannot be written to is no reason to stop
    return True


def show(report: Report, args: argparse.Namespace) -> None:
    """Print a report in the formats asked for, and draw it."""
    if args.json:
        print(report.as_json())
    if args.markdown:
        print(records.as_markdown(report.cases))
    if args.plot:
        for file in plot.draw(report.as_dict(), args.plot):
            print(file)
