"""Pictures of a benchmark: time and memory over the number of tokens, one line a kernel."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from qwen_mfa.errors import QwenMfaError

if TYPE_CHECKING:
    from pathlib import Path

# Told apart in greyscale and by colour-blind readers too: line style and marker differ.
_STYLES = ["o-", "s--", "^-.", "D:", "v-", "x--"]


def require() -> None:
    """Raise unless pictures can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        msg = "--plot needs matplotlib: pip install matplotlib"
        raise QwenMfaError(msg)


def draw(report: dict[str, Any], prefix: Path) -> list[Path]:
    """Draw ``report`` (see `records.Report`) into ``prefix``.png and ``prefix``.svg."""
    require()
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    ticker = importlib.import_module("matplotlib.ticker")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    lines = _lines(report["cases"])
    panels = (("seconds", "seconds a call"), ("memory", "peak memory, MiB"))
    for axis, (quantity, label) in zip(axes, panels, strict=True):
        for style, (name, points) in zip(_STYLES * len(lines), lines.items(), strict=False):
            known = [(p["tokens"], p[quantity]) for p in points if p[quantity]]
            if known:
                axis.plot(*zip(*sorted(known), strict=True), style, label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens (text and image)", ylabel=label)
        ticks = sorted({p["tokens"] for points in lines.values() for p in points})
        axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(visible=True, alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    machine = report["machine"]
    what = [report["bench"].capitalize()]
    if not _several(report["cases"]):
        what += [f"{case['dtype']}, mask {case['mask']}" for case in report["cases"][:1]]
    where = f"{machine['system']}, MLX {machine['mlx']}"
    figure.suptitle(", ".join([*what, where]), fontsize="medium")
    files = []
    for suffix in (".png", ".svg"):
        file = prefix.with_name(prefix.name + suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)
        files.append(file)
    plt.close(figure)
    return files


def _several(cases: list[dict[str, Any]]) -> bool:
    return len({(case["dtype"], case["mask"]) for case in cases}) > 1


def _lines(cases: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    several = _several(cases)
    lines: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        for entry in case["entries"]:
            if entry["seconds"] is None:
                continue
            suffix = f", {case['dtype']}, mask {case['mask']}" if several else ""
            memory = entry["memory"]
            lines.setdefault(entry["contestant"] + suffix, []).append(
                {
                    "tokens": case["sizes"]["Sq"],
                    "seconds": entry["seconds"]["median"],
                    "memory": memory / 2**20 if memory else None,
                }
            )
    return lines
