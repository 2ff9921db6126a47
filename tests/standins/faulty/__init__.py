"""Builds the stand-in for a faulty library: the portable engine's sources with a fault switch."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "swift_pkg" / "Sources" / "MFAFFI"
ENTRY = "mfa_portable_attention"


def build(folder: Path) -> Path:
    """Compile into ``folder`` with cc, and return the library's path."""
    library = folder / "libfaulty.so"
    flags = ["-std=gnu11", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{SOURCES / 'include'}"]
    engine = [str(path) for path in sorted(SOURCES.rglob("*.c"))]
    cc(folder, *flags, f"-D{ENTRY}=faulty_passed_on", "-c", *engine)
    objects = [str(path) for path in sorted(folder.glob("*.o"))]
    source = str(HERE / "faulty.c")
    cc(folder, *flags, "-shared", source, *objects, "-o", str(library), "-lm", "-lpthread")
    return library


def cc(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["cc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
