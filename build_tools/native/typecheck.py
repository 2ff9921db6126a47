"""The pinned source with our overlay, compiled here by the real Swift compiler.

Apple's modules are the stand-ins of `build_tools.native.standins`, so this shows that every edit
fits its surroundings. It does not show that Metal accepts the shaders, nor what they compute.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from build_tools.native import standins, toolchain
from build_tools.native.standins import Standins
from build_tools.source import overlay
from build_tools.source.fetch import Source
from build_tools.support import files, process
from build_tools.support.console import step
from build_tools.support.errors import BuildError


def stage(source: Source, repairs: overlay.Overlay, target: Path) -> None:
    """Copy the verified source to ``target`` and apply the repairs there."""
    files.remove_tree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source.root, target, symlinks=True)
    overlay.apply(repairs, target)


def compile_tree(
    source: Source, repairs: overlay.Overlay, *, work: Path, apple: Standins | None = None
) -> tuple[Path, Standins]:
    """Compile ``source`` with ``repairs`` against the stand-ins, which are built unless given.

    Returns:
        The library, which runs on this machine with a stand-in device, and the stand-ins.

    Raises:
        OverlayError: A repair does not fit.
        ToolError: The compiler found an error; the message ends with its own lines.

    """
    tools = toolchain.check({"swift": source.lock.requires.get("swift", "6.0")})
    if apple is None:
        with step("stand-in modules"):
            apple = standins.build(work / "standins")
    tree = work / "tree"
    stage(source, repairs, tree)
    command = [
        tools.swift, "build", "-c", "release", "-j", "2", "--product", source.lock.product,
        "--package-path", str(tree), "--scratch-path", str(work / "build"), *apple.options,
    ]  # fmt: skip
    with step("compile the pinned source with the overlay") as show:
        process.run(command, on_line=show)
    folder = process.capture([*command, "--show-bin-path"])
    library = work / "build" / "release" / f"lib{source.lock.product}.so"
    if not library.is_file():
        msg = f"swift build succeeded but {library} is not there (it builds in {folder})"
        raise BuildError(msg)
    return library, apple
