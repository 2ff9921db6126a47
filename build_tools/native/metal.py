"""The Metal engine: the pinned source with our repairs, through ``swift build -c release``.

The same inputs give the same bytes: the source is verified, the environment is chosen by us, and
the build happens in one canonical folder, because SwiftPM writes that folder's name into the
library (the accessor of its resource bundle). A result is cached by everything that went into it.
"""

from __future__ import annotations

import calendar
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_tools.binaries.relocate import macho
from build_tools.native import cache, exports, shaders, toolchain, typecheck
from build_tools.native.cache import Built
from build_tools.native.toolchain import Toolchain
from build_tools.source import fetch, overlay
from build_tools.source.fetch import Source
from build_tools.source.lock import Lock
from build_tools.source.remotes import Remotes
from build_tools.support import files, paths, process
from build_tools.support.console import step
from build_tools.support.errors import BuildError, ToolError
from build_tools.support.flock import locked

# World-known on purpose: two users of two machines get the same bytes.
CANONICAL = Path("/var/tmp/qwen-mfa-build")  # noqa: S108 - ownership is checked before use
SCHEMA = 1
# No debug information: it names folders, and nothing of it is shipped.
FLAGS = ("-Xswiftc", "-gnone", "-Xcc", "-g0")
# Room for relocation, and no name to the outside but the C interface's.
MACOS_FLAGS = (
    "-Xlinker", "-headerpad_max_install_names", "-Xlinker", "-exported_symbol",
    "-Xlinker", "_mfa_*",
)  # fmt: skip
MINIMUM_OS = (15, 0)  # what upstream's Package.swift asks for, and the wheel's tag says
PASSED_ON = ("PATH", "HOME", "TMPDIR", "DEVELOPER_DIR")
SHOWN_ERRORS = 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build, and where.

    Attributes:
        lock: The pin.
        repairs: The overlay.
        cache: Folder of fetched sources.
        work: Folder that receives results.
        canonical: Folder in which the compiler works.
        options: More options for ``swift build``; part of the key and of the manifest.

    """

    lock: Lock
    repairs: overlay.Overlay
    cache: Path
    work: Path
    canonical: Path = CANONICAL
    options: tuple[str, ...] = ()


def build(request: Request, *, remotes: Remotes | None = None) -> Built:
    """Build the library, or take it from the cache.

    Raises:
        ToolchainError: This machine lacks something; every missing thing is named.
        SourceError: The source cannot be had or is not what the lock says.
        OverlayError: A repair does not fit.
        BuildError: The compiler failed (with its own lines), or the library lacks functions.

    """
    tools = toolchain.check(request.lock.requires)
    tree = fetch.obtain(request.lock, cache=request.cache, remotes=remotes)
    inputs = _inputs(request, tools)

    def make(stage: Path) -> tuple[Path, dict[str, Any]]:
        try:
            return _build(request, tree, tools, inputs, stage)
        except OSError as error:
            msg = (
                f"the library could not be built in {request.canonical} for {request.work}: "
                f"{error}. Free some room, or choose other folders (--build-root, --work)."
            )
            raise BuildError(msg) from error

    return cache.obtain(request.work / f"metal-{cache.key(inputs)}", make)


def _inputs(request: Request, tools: Toolchain) -> dict[str, Any]:
    """Return everything that the bytes of the result depend on."""
    lock = request.lock
    return {
        "schema": SCHEMA,
        "pin": [
            {"path": r.path, "url": r.url, "commit": r.commit, "tree": r.tree}
            for r in lock.repositories
        ],
        "overlay": overlay.hashes(request.repairs),
        "toolchain": dict(tools.facts),
        "flags": [*_flags(lock, request.options)],
        "environment": _determinism(lock),
        "folder": str(request.canonical),
        "shader_packs": [asdict(pack) for pack in lock.shader_packs],
    }


def _flags(lock: Lock, options: Sequence[str]) -> list[str]:
    return ["-c", "release", "--product", lock.product, *FLAGS, *_platform_flags(), *options]


def _platform_flags() -> tuple[str, ...]:
    return MACOS_FLAGS if platform.system() == "Darwin" else ()


def _determinism(lock: Lock) -> dict[str, str]:
    epoch = calendar.timegm(time.strptime(lock.date, "%Y-%m-%d"))
    return {
        "SOURCE_DATE_EPOCH": str(epoch),
        "ZERO_AR_DATE": "1",
        "LC_ALL": "C",
        "TZ": "UTC",
    }


def _build(
    request: Request, tree: Source, tools: Toolchain, inputs: dict[str, Any], stage: Path
) -> tuple[Path, dict[str, Any]]:
    with locked(request.canonical.with_suffix(".lock")):
        room = _private_folder(request.canonical)
        try:
            typecheck.stage(tree, request.repairs, room / "source")
            products = _compile(request, tools, room)
            _collect(request.lock, tree, products, stage)
            _embed_packs(request.lock, stage)
            header = room / "source" / request.lock.header.path
            library = next(stage.glob(f"lib{request.lock.product}.*"))
            if library.suffix == ".dylib":
                macho.embed(library, minimum_os=MINIMUM_OS)
            promised = exports.check(library, header)
        finally:
            files.remove_tree(room)
    return library, {
        **inputs,
        "engine": "metal",
        "built_by": "swift build -c release",
        "abi": {"header": request.lock.header.path, "functions": promised},
    }


def _embed_packs(lock: Lock, stage: Path) -> None:
    """Put the packs that the lock names into the folder that the library looks into."""
    packs = tuple((paths.ROOT / pack.path, pack.sha256) for pack in lock.shader_packs)
    if packs:
        shaders.embed(packs, stage / "shaders")


def _private_folder(path: Path) -> Path:
    """Make ``path`` anew, ours alone: others could otherwise put files into the build."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and path.lstat().st_uid != os.getuid()):
        msg = (
            f"the build folder {path} belongs to somebody else. Have it removed, or choose another "
            "with --build-root (the library's bytes then differ from those of other machines)."
        )
        raise BuildError(msg)
    files.remove_tree(path)
    path.mkdir(mode=0o700)
    return path.resolve()


def _compile(request: Request, tools: Toolchain, room: Path) -> Path:
    command = [
        tools.swift, "build", *_flags(request.lock, request.options),
        "--package-path", str(room / "source"), "--scratch-path", str(room / "build"),
    ]  # fmt: skip
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env |= _determinism(request.lock)
    with step(f"swift build {request.lock.product}") as show:
        try:
            process.run(command, env=env, on_line=show)
        except ToolError as error:
            raise _compiler_error(error) from error
    return Path(process.capture([*command, "--show-bin-path"]))


def _compiler_error(error: ToolError) -> BuildError:
    """Say what the compiler said: its own error lines, each once."""
    log = process.log_file()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = list(dict.fromkeys(line.strip() for line in lines if ": error:" in line))
    if not told:
        return BuildError(f"the build failed: {error}")
    shown = "\n".join(f"  {line}" for line in told[:SHOWN_ERRORS])
    return BuildError(f"the compiler rejected the source:\n{shown}\nFull log: {log}")


def _collect(lock: Lock, tree: Source, products: Path, stage: Path) -> None:
    """Copy the library, its resource bundles and the licences, with modes of our choice."""
    libraries = [
        products / f"lib{lock.product}{suffix}"
        for suffix in (".dylib", ".so")
        if (products / f"lib{lock.product}{suffix}").is_file()
    ]
    if len(libraries) != 1:
        msg = f"swift build succeeded but there is no lib{lock.product} in {products}"
        raise BuildError(msg)
    shutil.copyfile(libraries[0], stage / libraries[0].name)
    for pattern in ("*.bundle", "*.resources"):
        for bundle in sorted(products.glob(pattern)):
            shutil.copytree(bundle, stage / bundle.name, copy_function=shutil.copyfile)
    for repo in lock.repositories:
        for licence in repo.licences:
            name = f"{repo.path or lock.name}-{Path(licence.path).name}"
            (stage / "licenses").mkdir(exist_ok=True)
            shutil.copyfile(tree.root / repo.path / licence.path, stage / "licenses" / name)
    for path in stage.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.name == libraries[0].name else 0o644)
