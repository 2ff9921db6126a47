"""``xcrun metal`` and ``xcrun metallib``: from a record of sources to a shader pack."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_tools.native import shaders
from build_tools.native.shaders import Record, Source
from build_tools.support import files, process
from build_tools.support.console import say
from build_tools.support.errors import ShaderError, ToolError

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


@dataclass(frozen=True, kw_only=True)
class Tools:
    """``metal`` and ``metallib`` as ``xcrun`` starts them, and what they call themselves."""

    metal: tuple[str, ...]
    metallib: tuple[str, ...]
    version: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one source: ``error`` is the compiler's word against it, or ``None``."""

    source: Source
    error: str | None

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.source.purpose}, {self.source.variant}: {self.error or 'compiles'}"


def tools(xcrun: str) -> Tools:
    """Find the Metal compiler.

    Raises:
        ToolError: There is none.

    """
    xcrun = str(Path(process.find(xcrun, hint=HINT)).absolute())
    metal, metallib = ((xcrun, "-sdk", "macosx", tool) for tool in ("metal", "metallib"))
    try:
        version = process.capture([*metal, "--version"]).splitlines()[0]
    except (ToolError, IndexError) as error:
        msg = f"{error}\n{HINT}"
        raise ToolError(msg) from error
    return Tools(metal=metal, metallib=metallib, version=version)


def compile_all(record: Record, folder: Path, compiler: Tools) -> list[Outcome]:
    """Compile every source into ``folder``, as ``<key>.metallib``, and say what became of each."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder.parent) as scratch:
        for number, source in enumerate(record.sources, 1):
            say(f"[{number}/{len(record.sources)}] {source.purpose}, {source.variant}")
            made = folder / f"{source.key}.metallib"
            try:
                _compile(record, source, compiler, Path(scratch), made)
            except ToolError as error:
                outcomes.append(Outcome(source=source, error=_last_line(error)))
            else:
                outcomes.append(Outcome(source=source, error=None))
    return outcomes


def attempt(record: Record, *, xcrun: str) -> tuple[str, list[Outcome]]:
    """Compile every source, both variants, keep nothing; return the compiler and the outcomes."""
    compiler = tools(xcrun)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "made"
        target.mkdir()
        return compiler.version, compile_all(record, target, compiler)


def pack(record: Record, target: Path, *, xcrun: str) -> list[str]:
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
    compiler = tools(xcrun)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        stage = Path(folder) / "pack"
        stage.mkdir()
        outcomes = compile_all(record, stage, compiler)
        left_out = [str(each) for each in outcomes if each.error is not None]
        libraries: dict[str, Any] = {
            each.source.key: {
                "file": f"{each.source.key}.metallib",
                "sha256": files.sha256(stage / f"{each.source.key}.metallib"),
                "variant": each.source.variant,
                "compiler": compiler.version,
                "minimum_os": ".".join(map(str, shaders.OLDEST_OS)),
            }
            for each in outcomes
            if each.error is None
        }
        missing = shaders.uncovered(libraries, record.sources)
        if missing:
            listed = "".join(f"\n  {text}" for text in left_out)
            log = process.log_file()
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


def _compile(record: Record, source: Source, compiler: Tools, scratch: Path, made: Path) -> None:
    # One name for all: a metallib may hold its source's name, and packs should be reproducible.
    text, air = scratch / "shader.metal", scratch / "shader.air"
    text.write_text(record.text(source), encoding="utf-8")
    command = [*compiler.metal, *flags(record.options), "-c", text.name, "-o", air.name]
    process.run(command, cwd=scratch, timeout=TIME_LIMIT)
    command = [*compiler.metallib, air.name, "-o", str(made)]
    process.run(command, cwd=scratch, timeout=TIME_LIMIT)
    if not made.is_file():
        msg = f"metallib wrote nothing for {source.key}"
        raise ToolError(msg)


def _last_line(error: ToolError) -> str:
    lines = [line for line in str(error).splitlines() if ": error:" in line]
    return lines[0].strip() if lines else str(error).splitlines()[0]
