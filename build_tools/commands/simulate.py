"""Execute the pinned source's kernels on this machine, and hold what they compute against float64.

The pinned source is built with our overlay against stand-in Apple modules, as `typecheck` does;
its Metal sources are compiled for the CPU and run lane by lane. Both variants of every recorded
source are run, with a memory checker too. Then the installed package runs over the library: its
self-test, Qwen-Image's own shape, the golden vectors, and mistakes that must be caught. Exit status
1 when anything disagrees.
"""

from __future__ import annotations

import json
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.commands import common
from build_tools.commands.typecheck import SOURCES
from build_tools.native.standins import simulated_package, simulation
from build_tools.support import tables
from build_tools.support.console import say, stdout, step

if TYPE_CHECKING:
    import argparse

    from build_tools.native.standins.simulation import Result

_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``simulate``."""
    common.add_compiled(parser, "simulate")
    parser.add_argument(
        "--sources", type=Path, default=SOURCES, metavar="FILE",
        help="the recorded keys, each of which must run; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--full", action="store_true", help="the package's whole validation, too (half an hour)"
    )
    parser.add_argument("--no-package", action="store_true", help="without the installed package")
    parser.add_argument(
        "--heads", type=int, default=1, metavar="N",
        help="heads of Qwen-Image's own shape, 1124 tokens of 128; default: %(default)s",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Build, run, compare."""
    _, library, apple = common.compiled(args)
    simulator = simulation.Simulator(library, apple, cache=args.work.resolve() / "cache")
    with step("every source, class, mask and layout"):
        numbers = simulator.run(simulation.numeric_cases())
    with step("the memory checker"):
        checked = simulator.run(simulation.checked_cases(), check=True)
    with step("ten schedules"):
        scheduled = simulator.run(simulation.scheduled_cases())
    with step(f"Qwen-Image, {args.heads} of 24 heads"):
        whole = simulator.run(simulation.qwen_image_cases(args.heads))
    wrong = [f"{r.case}: {r.why}" for r in (*numbers, *checked, *scheduled, *whole) if r.why]
    wrong += simulation.different_bits(numbers, apart_from="variant")
    wrong += simulation.different_bits(scheduled, apart_from="schedule")
    wrong += _not_run(args.sources, numbers)
    _print(numbers)
    for result in whole:
        case = result.case
        say(
            f"Apple{case.family}, {case.length_q} tokens, {case.heads} heads: largest error "
            f"{result.error:.1e}"
        )
    found = sorted({text for result in checked for text in result.findings})
    known = simulation.KNOWN | simulation.KNOWN_BEHIND
    for text in found:
        say(f"checker: {text} ({known.get(text, 'NOT KNOWN')})")
    if not args.no_package:
        wrong += _package(simulator, args.work.resolve(), heads=args.heads, full=args.full)
    for text in wrong[:_SHOWN]:
        stdout.print(f"DISAGREES: {text}")
    count = len(numbers) + len(checked) + len(scheduled) + len(whole)
    say(f"{count} calls executed, {len(wrong)} disagree")
    return 1 if wrong else 0


def _not_run(path: Path, results: list[Result]) -> list[str]:
    recorded = json.loads(path.read_text(encoding="utf-8"))["sources"]
    run_keys = {key for result in results for key in result.keys}
    missing = [key for key in recorded if key not in run_keys]
    return [f"the recorded source {key} was never run" for key in missing]


def _package(simulator: simulation.Simulator, work: Path, *, heads: int, full: bool) -> list[str]:
    """Run the installed package over the library; return what disagrees."""
    wrong = []
    for family in simulation.FAMILIES:
        for variant in simulation.VARIANTS:
            at = f"Apple{family}, {variant}"
            package = simulated_package.Package(simulator, family, variant)
            with step(f"the package's self-test, {at}"):
                report = package.selftest(work)
            sections = [report["sections"].get("validation", {})]
            found = list(report["reasons"])
            if full:
                with step(f"the package's whole validation, {at}"):
                    sections.append(package.validation())
                found += sections[1]["failures"]
            for section in sections:
                validations = section.get("validations", [])
                good = sum(bool(validation["ok"]) for validation in validations)
                worst = max((each["margin"] for each in validations), default=0.0)
                say(
                    f"{at}: {good} of {len(validations)} validations hold; the largest error is "
                    f"{worst:.0%} of its bound"
                )
                found += [] if validations else ["nothing was validated"]
            with step(f"golden vectors and mistakes, {at}"):
                found += filter(None, [package.tests()])
            wrong += [f"{at}: {text}" for text in found]
        with step(f"Qwen-Image through the package, Apple{family}, {heads} of 24 heads"):
            whole = package.attend(simulation.QWEN_IMAGE_TOKENS, heads)
        say(
            f"Apple{family}, the same from the public function, in bfloat16: largest error "
            f"{whole['error']:.1e}, {whole['seconds']:.1f} s with its validation"
        )
        wrong += [f"{at}: {text}" for text in whole["misuses"]]
        if not (whole["error"] <= simulated_package.ALLOWED and whole["waits"]):
            wrong.append(f"{at}: {whole}")
    return wrong


def _print(results: list[Result]) -> None:
    """Print the largest error of each family, input, class of intermediates, mask and layout."""
    worst: dict[tuple[int, str, str, str, str], float] = {}
    for result in results:
        case = result.case
        row = (case.family, case.input, case.intermediate, case.mask, case.layout)
        worst[row] = max(worst.get(row, 0.0), result.error)
    headings = ("GPU", "input", "intermediate", "layout", *simulation.MASKS)
    table = tables.new("Largest errors against float64", *headings)
    for family, kind, inner, layout in dict.fromkeys((r[0], r[1], r[2], r[4]) for r in worst):
        cells = [
            f"{worst.get((family, kind, inner, mask, layout), nan):.1e}"
            for mask in simulation.MASKS
        ]
        gpu = "Apple9 and later" if family == simulation.FAMILIES[-1] else "before Apple9"
        table.add_row(gpu, kind, "fp32" if inner == "fp32" else "low", layout, *cells)
    tables.show(table)
