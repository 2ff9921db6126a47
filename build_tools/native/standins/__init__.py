"""The stand-in Metal modules (tests/standins/metal-swift), built for this machine.

They let the real Swift compiler read, and this machine run, code that imports Apple's modules.
They are never part of a wheel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_tools.native import toolchain
from build_tools.support import process
from build_tools.support.paths import ROOT

FOLDER = ROOT / "tests" / "standins" / "metal-swift"
LIBRARY = "libMetalStandins.so"


@dataclass(frozen=True, kw_only=True)
class Standins:
    """Where the built modules lie."""

    folder: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Options with which `swift build` finds and links the stand-ins."""
        return (
            "-Xswiftc", f"-I{self.folder / 'Modules'}",
            "-Xlinker", f"-L{self.folder}",
            "-Xlinker", "-lMetalStandins",
            "-Xlinker", "-rpath", "-Xlinker", str(self.folder),
        )  # fmt: skip

    @property
    def library(self) -> Path:
        """The library that holds all the stand-ins."""
        return self.folder / LIBRARY


def build(scratch: Path) -> Standins:
    """Build the stand-ins below ``scratch`` (quick when nothing changed)."""
    swift = process.find("swift", hint=toolchain.SWIFT_HINT)
    command = [
        swift, "build", "-c", "release", "-j", "2",
        "--package-path", str(FOLDER), "--scratch-path", str(scratch),
    ]  # fmt: skip
    process.run(command)
    return Standins(folder=Path(process.capture([*command, "--show-bin-path"])))
