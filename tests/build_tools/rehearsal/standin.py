"""Stand-in wheels for machines that this one cannot build for, so that installers have a choice.

Their library exports the C interface and computes nothing, cross-compiled with zig. Nobody ever
gets one: the manifest says engine "stand-in", which `build_tools.release.files` refuses, and the
file name's build tag says it to people.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build_tools.binaries.relocate import macho
from build_tools.native import portable
from build_tools.source.header import declared
from build_tools.support import process
from build_tools.support.paths import ROOT
from build_tools.wheel import archives, canonical, fingerprint, manifest, sbom
from build_tools.wheel.archives import Entry

if TYPE_CHECKING:
    from build_tools.release.project import Project

ENGINE = "stand-in"
BUILD_TAG = "0standin"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine to compile for: zig's name of it, the library's name, the wheel's platform tag."""

    zig: str
    library: str
    tag: str
    link: tuple[str, ...]


def _linux(arch: str) -> Target:
    return Target(
        zig=f"{arch}-linux-gnu.2.17",
        library="libMFAFFI.so",
        tag=f"manylinux_2_17_{arch}",
        link=(
            "-shared", "-Wl,-soname,libMFAFFI.so", "-Wl,-z,relro,-z,now",
            f"-Wl,--version-script={portable.PACKAGE / portable.EXPORTS}",
        ),
    )  # fmt: skip


MACOS = Target(
    zig="aarch64-macos.15.0",
    library="libMFAFFI.dylib",
    tag="macosx_15_0_arm64",
    link=("-dynamiclib", "-Wl,-install_name,@rpath/libMFAFFI.dylib"),
)
LINUX = {arch: _linux(arch) for arch in ("x86_64", "aarch64")}


def missing_targets(machine: str = platform.machine(), system: str = sys.platform) -> list[Target]:
    """Return the targets of a release for which this machine cannot build the real wheel."""
    others = [target for arch, target in LINUX.items() if (system, arch) != ("linux", machine)]
    return [MACOS, *others]


def make(pure: Path, target: Target, out: Path, *, project: Project) -> Path:
    """Make the stand-in for ``target`` from the MLX-only wheel ``pure``; return its path.

    Raises:
        ToolError: zig failed.

    """
    out.mkdir(parents=True, exist_ok=True)
    name = f"{project.file_stem}-{BUILD_TAG}-py3-none-{target.tag}.whl"
    with tempfile.TemporaryDirectory(prefix=".standin-", dir=out) as temporary:
        library = _compile(target, Path(temporary))
        told = _manifest(target, library, project)
        made = Path(temporary) / name
        shutil.copyfile(pure, made)
        _embed(made, library.read_bytes(), told, target, project)
        canonical.rewrite_wheel(made, sboms={sbom.NAME: sbom.render(told, folder=manifest.NATIVE)})
        made.replace(out / name)
    return out / name


def _compile(target: Target, folder: Path) -> Path:
    library, source = folder / target.library, folder / "standin.c"
    names = declared((ROOT / "mfa_wheel" / manifest.DECLARATIONS).read_text(encoding="utf-8"))
    source.write_text("".join(f"int {name}(void) {{ return -1; }}\n" for name in names))
    command = [
        # Without the C library, which zig would compile first.
        sys.executable, "-m", "ziglang", "cc", "-target", target.zig, "-g0", "-nostdlib", "-fPIC",
        source.name, *target.link, "-s", "-o", str(library),
    ]  # fmt: skip
    process.run(command, cwd=folder)
    if target is MACOS:
        library.write_bytes(macho.relocate(library.read_bytes(), filename=library.name))
    return library


def _manifest(target: Target, library: Path, project: Project) -> dict[str, Any]:
    content = library.read_bytes()
    return {
        "schema": manifest.SCHEMA,
        "package": {"name": project.name, "version": project.version},
        "engine": ENGINE,
        "platform_tag": target.tag,
        "built_by": "zig cc",
        "compiler": f"zig {importlib.metadata.version('ziglang')}",
        "flags": ["-target", target.zig],
        "sources": portable.source_hashes(),
        "build_fingerprint": fingerprint.read(project.root),
        "files": {library.name: hashlib.sha256(content).hexdigest()},
        "library": {
            "file": library.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        },
    }


def _embed(
    wheel: Path, library: bytes, told: dict[str, Any], target: Target, project: Project
) -> None:
    """Add the library and its manifest, and make it a platform wheel; RECORD is made later."""
    entries = archives.read(wheel).entries
    about = f"{project.file_stem}.dist-info/WHEEL"
    text = entries[about].content.decode("utf-8")
    text = text.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    text = text.replace("Tag: py3-none-any", f"Build: {BUILD_TAG}\nTag: py3-none-{target.tag}")
    entries[about] = Entry(content=text.encode())
    entries[f"{manifest.NATIVE}/{target.library}"] = Entry(content=library, executable=True)
    entries[manifest.MANIFEST] = Entry(content=manifest.render(told).encode())
    wheel.write_bytes(canonical.pack_wheel(entries, canonical.ZIP_EPOCH))
