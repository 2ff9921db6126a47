"""Pictures of a benchmark: time and memory, as bars for one size, over the tokens for several."""

from __future__ import annotations

import importlib
import importlib.util
import textwrap
from typing import TYPE_CHECKING, Any

from qwen_mfa.errors import QwenMfaError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Told apart in greyscale and by colour-blind readers too: line style and marker differ. Markers are
# hollow, and what would coincide is drawn side by side.
_STYLES = ["o-", "s--", "^-.", "D:", "v-", "x--"]
_APART = 1.02  # between neighbours; ticks are further apart by far
_LABEL = 34  # characters of a bar's name before it goes on in the next line
SECONDS, MEMORY = "seconds a call", "peak memory, MiB"
QUARTILES = "median, with its quartiles"

Point = dict[str, Any]


def require() -> None:
    """Raise unless pictures can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        msg = '--plot needs matplotlib: pip install "matplotlib>=3.8"'
        raise QwenMfaError(msg)


def draw(report: dict[str, Any], prefix: Path) -> list[Path]:
    """Draw ``report`` (see `records.Report`) into ``prefix``.png and ``prefix``.svg.

    Raises:
        QwenMfaError: Nothing has been measured yet, or there is no matplotlib.

    """
    require()
    lines = _lines(report["cases"])
    if not lines:
        msg = "there is nothing to draw: no round of it was measured"
        raise QwenMfaError(msg)
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    points = [point for line in lines.values() for point in line]
    panels = [SECONDS] + [MEMORY] * any(point[MEMORY] for point in points)
    bars = len({point["x"] for point in points}) == 1
    height = max(3.0, 1.6 + 0.45 * len(lines)) if bars else 4.5
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), height), layout="constrained", squeeze=False
    )
    for axis, quantity in zip(axes[0], panels, strict=True):
        if bars:
            _draw_bars(axis, lines, quantity)
        else:
            _draw_lines(axis, lines, quantity)
    if bars:
        for axis in axes[0][1:]:  # the same names once
            axis.set_yticklabels([])
    else:
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    # Short enough for one panel, too.
    lines_above = titles(report, "hatched" if bars else "ringed")
    text = [part for line in lines_above for part in textwrap.wrap(line, 68 * len(panels))]
    figure.suptitle("\n".join(text), fontsize="medium")
    files = [prefix.with_name(prefix.name + suffix) for suffix in (".png", ".svg")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)
    plt.close(figure)
    return files


def titles(report: dict[str, Any], mark: str) -> list[str]:
    """Return the lines above a picture: what was measured, where, and whether it is all of it.

    ``mark`` says how a case is drawn that lacks rounds.
    """
    cases, machine = report["cases"], report["machine"]
    names = {case["shape"] for case in cases}
    what = [report["bench"].capitalize(), *(names if len(names) == 1 else [])]
    alike = [_word(key, value) for key, value in _shared(cases).items()]
    where = f"{machine['device']}; {machine['system']}, MLX {machine['mlx']}"
    found = [", ".join([*what, *alike]), where]
    if not report["complete"]:
        last = f", and not every round of what is {mark}"
        lacking = any(not case["complete"] for case in cases)
        found.append(f"INTERRUPTED: not all of it was measured{last if lacking else ''}")
    return found


def _shared(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what all cases have in common, by name."""
    described = [_described(case) for case in cases]
    first = described[0] if described else {}
    return {k: v for k, v in first.items() if all(each.get(k) == v for each in described)}


def _word(key: str, value: object) -> str:
    return str(value) if key == "dtype" else f"{key} {value}"


def _described(case: dict[str, Any]) -> dict[str, Any]:
    return {**case["sizes"], "dtype": case["dtype"], "mask": case["mask"]}


def _lines(cases: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """Return the points of every contestant; cases that differ in more than lengths, apart."""
    shared = _shared(cases)
    lines: dict[str, list[Point]] = {}
    for case in cases:
        lengths = ("Sq", "Skv", "text")
        sizes = case["sizes"]
        apart = [
            _word(key, value)
            for key, value in _described(case).items()
            if key not in shared and key not in lengths
        ]
        queries, keys = sizes["Sq"], sizes.get("Skv", sizes["Sq"])
        for entry in case["entries"]:
            if entry["seconds"] is not None:
                memory = entry["memory"]
                lines.setdefault(", ".join([entry["contestant"], *apart]), []).append(
                    {
                        "x": (queries, keys),
                        "tick": str(queries) if queries == keys else f"{queries}\n({keys} keys)",
                        "complete": case["complete"],
                        SECONDS: entry["seconds"],
                        MEMORY: memory / 2**20 if memory else None,
                    }
                )
    return lines


def _known(line: list[Point], quantity: str) -> Iterator[tuple[Point, float, tuple[float, float]]]:
    """Give points with their value and how far it reaches, below and above."""
    for point in sorted(line, key=lambda point: point["x"]):
        value = point[quantity]
        if isinstance(value, dict):
            middle = value["median"]
            yield point, middle, (middle - value["low"], value["high"] - middle)
        elif value is not None:
            yield point, value, (0.0, 0.0)


def _draw_lines(axis: Any, lines: dict[str, list[Point]], quantity: str) -> None:
    ticker = importlib.import_module("matplotlib.ticker")
    middle = (len(lines) - 1) / 2
    for number, (name, line) in enumerate(lines.items()):
        known = list(_known(line, quantity))
        if not known:
            continue
        color, aside = f"C{number % 10}", _APART ** (number - middle)
        spans = list(zip(*(span for _, _, span in known), strict=True))
        axis.errorbar(
            [point["x"][0] * aside for point, _, _ in known],
            [value for _, value, _ in known],
            yerr=spans if quantity == SECONDS else None,
            fmt=_STYLES[number % len(_STYLES)],
            color=color,
            label=name,
            markerfacecolor="none",
            capsize=3,
        )
        for point, value, _ in known:
            if not point["complete"]:
                axis.plot(
                    point["x"][0] * aside, value, "o", color=color, markersize=14, fillstyle="none"
                )
    points = [point for line in lines.values() for point in line]
    ticks = {point["x"][0]: point["tick"] for point in points}
    label = f"{quantity} ({QUARTILES})" if quantity == SECONDS else quantity
    axis.set(xscale="log", yscale="log", xlabel="tokens (text and image)", ylabel=label)
    axis.set_xlim(min(ticks) / 1.2, max(ticks) * 1.2)  # the same in every panel
    axis.set_xticks(list(ticks), list(ticks.values()), minor=False)
    axis.minorticks_off()
    axis.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(visible=True, alpha=0.3)


def _draw_bars(axis: Any, lines: dict[str, list[Point]], quantity: str) -> None:
    names = [textwrap.fill(name, _LABEL) for name in lines]
    largest = 0.0
    contestants = list(dict.fromkeys(name.split(",")[0] for name in lines))
    for place, (name, line) in enumerate(lines.items()):
        color = f"C{contestants.index(name.split(',')[0]) % 10}"
        for point, value, (below, above) in _known(line, quantity):
            axis.barh(
                place,
                value,
                xerr=[[below], [above]] if quantity == SECONDS else None,
                color=color if point["complete"] else "none",
                edgecolor=color,
                hatch=None if point["complete"] else "//",
                alpha=0.8,
                capsize=4,
            )
            largest = max(largest, value + above)
            axis.annotate(
                f"{value:.3g}", (value + above, place), xytext=(5, 0),
                textcoords="offset points", va="center",
            )  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    # From zero, so that lengths can be compared; room for the numbers.
    axis.set_xlim(0, largest * 1.18)
    axis.set_xlabel(f"{quantity} ({QUARTILES})" if quantity == SECONDS else quantity)
    axis.grid(visible=True, axis="x", alpha=0.3)
