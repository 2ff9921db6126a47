"""Say which library this installation carries, how it was built, and whether it can be used."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from typing import TYPE_CHECKING, Any

import qwen_mfa
from qwen_mfa import backend
from qwen_mfa.errors import LibraryError
from qwen_mfa.native import library

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the facts. Exit status 1 when the wheel carries a library that cannot be used."""
    facts = gather()
    print(json.dumps(facts, indent=2) if args.json else as_text(facts))
    broken = facts["library"]["state"] == "unusable"
    return 1 if broken else 0


def gather() -> dict[str, Any]:
    """Collect what is known, opening the library."""
    return {
        "qwen-mfa": qwen_mfa.__version__,
        "mlx": _version("mlx"),
        "device": device(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "library": _library(),
    }


def report_to() -> str:
    """Return `` to ADDRESS`` where this build has one (pyproject.toml), to end a sentence with."""
    metadata = importlib.metadata.metadata("qwen-mfa")
    for entry in metadata.get_all("Project-URL") or ():
        label, _, address = str(entry).partition(", ")
        if label == "Repository":
            return f" to {address.rstrip('/')}/issues"
    return ""


def device() -> str:
    """Name the device that MLX computes on."""
    if backend.problem():
        return f"none. {backend.problem()}"
    import mlx.core as mx  # noqa: PLC0415 - where it works

    here = mx.default_device()
    kind = "GPU" if here.type == mx.DeviceType.gpu else "CPU"
    found = mx.device_info(here)
    words = (str(found.get(key, "")) for key in ("device_name", "architecture"))
    return f"{kind}: {', '.join(word for word in words if word) or 'unknown'}"


def as_text(facts: dict[str, Any]) -> str:
    """Lay the facts out, one a line."""
    lines = [f"{key:<10} {value}" for key, value in facts.items() if key != "library"]
    lines += [f"{key:<10} {value}" for key, value in facts["library"].items() if value]
    return "\n".join(lines)


def _library() -> dict[str, Any]:
    try:
        found = library.load()
    except LibraryError as error:
        state = "unusable" if library.has_embedded() or error.path.suffix else "none"
        return {"state": state, "library": str(error.path), "reason": str(error)}
    manifest = found.manifest
    return {
        "state": "ready",
        "library": str(found.path),
        "origin": found.origin,
        "engine": manifest.get("engine", "portable" if found.is_portable else "metal"),
        "built by": manifest.get("built_by", "not stated"),
        "compiler": manifest.get("compiler", "not stated"),
        "flags": " ".join(manifest.get("flags", [])),
        "tag": manifest.get("platform_tag", ""),
        "sha256": found.sha256,
        "runs as": " ".join(f"{key}={value}" for key, value in found.facts.items()),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed for {sys.executable}"
