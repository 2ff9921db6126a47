"""``xcrun metal`` and ``xcrun metallib``: from a record of sources to a shader pack."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build_tools.native import shaders
from build_tools.support import files, process
from build_tools.support.console import say
from build_tools.support.errors import ShaderError, ToolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from build_tools.native.shaders import Record, Source

HINT = (
    "The Metal compiler is needed: install Xcode, choose it (sudo xcode-select -s "
    "/Applications/Xcode.app), and get its Metal toolchain (xcodebuild -downloadComponent "
    "MetalToolchain)."
)
TIME_LIMIT = 300.0
# Option in a key -> flag and the values that it takes.
_MATH = {
    "math": ("-fmetal-math-mode", ("fast", "relaxed", "safe")),
    "functions": ("-fmetal-math-fp32-functions", ("fast", "precise")),
}


def flags(options: str) -> list[str]:
    """Return the compiler's flags for options as a key states them.

    Raises:
        ShaderError: They say something that has no flag here.

    """
    oldest = ".".join(map(str, shaders.OLDEST_OS))
    words = dict(word.partition("=")[::2] for word in options.split(" "))
    try:
        result = [f"-mmacosx-version-min={oldest}", f"-std=metal{words['language']}"]
        for name, (flag, values) in _MATH.items():
            result.append(f"{flag}={values[values.index(words[name])]}")
        if words["optimization"] == "size":
            result.append("-Os")
        if words["invariance"] == "yes":
            result.append("-fpreserve-invariance")
        macros = words["macros"]
    except (KeyError, ValueError) as error:
        msg = f"compile options {options!r} are not understood ({error})"
        raise ShaderError(msg) from error
    return result + [f"-D{macro}" for macro in macros.split(",") if macro]


def pack(record: Record, target: Path, *, xcrun: str, log: Path) -> list[str]:
    """Compile every source of ``record`` into the new folder ``target``.

    A source that the compiler rejects is left out, as long as its other variant compiles.

    Returns:
        The sources that were left out, in words.

    Raises:
        ShaderError: The folder exists, or something has neither variant.
        ToolError: There is no Metal compiler.

    """
    if target.exists():
        msg = f"{target} exists; remove it, or name another folder"
        raise ShaderError(msg)
    xcrun = str(Path(process.find(xcrun, hint=HINT)).absolute())
    metal, metallib = ([xcrun, "-sdk", "macosx", tool] for tool in ("metal", "metallib"))
    try:
        compiler = process.capture([*metal, "--version"]).splitlines()[0]
    except (ToolError, IndexError) as error:
        msg = f"{error}\n{HINT}"
        raise ToolError(msg) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    libraries: dict[str, Any] = {}
    left_out = []
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        stage, scratch = Path(folder) / "pack", Path(folder) / "scratch"
        stage.mkdir()
        scratch.mkdir()
        for number, source in enumerate(record.sources, 1):
            say(f"[{number}/{len(record.sources)}] {source.purpose}, {source.variant}")
            made = stage / f"{source.key}.metallib"
            try:
                _compile(record, source, metal, metallib, scratch, made, log)
            except ToolError as error:
                left_out.append(f"{source.purpose}, {source.variant}: {_last_line(error)}")
                continue
            libraries[source.key] = {
                "file": made.name,
                "sha256": files.sha256(made),
                "variant": source.variant,
                "compiler": compiler,
                "minimum_os": ".".join(map(str, shaders.OLDEST_OS)),
            }
        missing = shaders.uncovered(libraries, record.sources)
        if missing:
            listed = "".join(f"\n  {text}" for text in left_out)
            msg = f"no variant compiles for {', '.join(missing)}:{listed}\nFull log: {log}"
            raise ShaderError(msg)
        about = {
            "commits": dict(record.commits),
            "options": record.options,
            "macos": platform.mac_ver()[0],
            "sources": [asdict(source) for source in record.sources],
        }
        index = {"format": shaders.FORMAT, "source": about, "libraries": libraries}
        files.write_json(stage / shaders.INDEX, index)
        shaders.load_pack(stage)
        stage.rename(target)
    return left_out


def _compile(
    record: Record,
    source: Source,
    metal: Sequence[str],
    metallib: Sequence[str],
    scratch: Path,
    made: Path,
    log: Path,
) -> None:
    # One name for all: a metallib may hold its source's name, and packs should be reproducible.
    text, air = scratch / "shader.metal", scratch / "shader.air"
    text.write_text(record.text(source), encoding="utf-8")
    command = [*metal, *flags(record.options), "-c", text.name, "-o", air.name]
    process.run(command, log=log, cwd=scratch, timeout=TIME_LIMIT)
    process.run([*metallib, air.name, "-o", str(made)], log=log, cwd=scratch, timeout=TIME_LIMIT)
    if not made.is_file():
        msg = f"metallib wrote nothing for {source.key}"
        raise ToolError(msg)


def _last_line(error: ToolError) -> str:
    lines = [line for line in str(error).splitlines() if ": error:" in line]
    return lines[0].strip() if lines else str(error).splitlines()[0]
