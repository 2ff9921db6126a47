"""The wheel: setuptools' own commands, with the native library embedded on the way.

One wheel a platform serves every Python (``py3-none-<platform>``): the library is bound by cffi in
ABI mode, so nothing in it depends on the interpreter.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.command.sdist import sdist

from build_tools.audit.gate import require
from build_tools.binaries.relocate import elf, macho
from build_tools.native import engine, portable
from build_tools.support import paths
from build_tools.support.errors import UsageError
from build_tools.wheel import canonical, fingerprint, sbom

if TYPE_CHECKING:
    from setuptools import Command

    from build_tools.native.engine import Native

PACKAGE = "qwen_mfa"
NATIVE = "_native"
MANIFEST_SCHEMA = 1


@cache
def native() -> Native | None:
    """Build the library once a process; ``None`` means the MLX-only wheel."""
    return engine.build()


def platform_tag(built: Native | None) -> str:
    """Return the wheel's platform tag, read off the library itself."""
    if built is None:
        return "any"
    if portable.SYSTEM == "linux":
        return elf.manylinux_tag(built.library)
    return macho.platform_tag(built.library)


def manifest(built: Native, *, version: str) -> dict[str, Any]:
    """Return what the wheel says about its library."""
    return {
        "schema": MANIFEST_SCHEMA,
        "package": {"name": "qwen-mfa", "version": version},
        "platform_tag": platform_tag(built),
        "recipe": fingerprint.read(paths.ROOT),
        **built.facts,
    }


def embed(built: Native, folder: Path, *, version: str) -> None:
    """Write the library, what belongs to it, and the manifest into ``folder``."""
    for name, file in built.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        target.chmod(0o755 if file == built.library else 0o644)
    text = json.dumps(manifest(built, version=version), indent=2)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


class BuildPy(build_py):
    """Copies the modules, then embeds the library and its manifest."""

    def run(self) -> None:
        """Start from an empty folder, so that no file of an earlier build slips in."""
        target = Path(self.build_lib) / PACKAGE
        if target.exists():
            shutil.rmtree(target)
        super().run()
        built = native()
        if built is None:
            return
        embed(built, target / NATIVE, version=self.distribution.get_version())


class BdistWheel(bdist_wheel):
    """Tags the wheel ``py3-none-<platform>``."""

    def finalize_options(self) -> None:
        """Mark the wheel as a platform wheel unless it carries no library."""
        # What decides where setuptools puts the modules; it would look for extension modules.
        setattr(self.distribution, "has_ext_modules", lambda: native() is not None)  # noqa: B010
        super().finalize_options()
        self.root_is_pure = native() is None

    def run(self) -> None:
        """Build the wheel out of sight; it appears when it is canonical and passes the audit."""
        final = Path(self.dist_dir or "dist")
        final.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=final) as folder:
            self.dist_dir = folder
            try:
                super().run()
            finally:
                self.dist_dir = str(final)
            (made,) = Path(folder).glob("*.whl")
            canonical.rewrite_wheel(made, sboms=self._sboms())
            require(made)
            made.replace(final / made.name)
        files = self.distribution.dist_files
        files[:] = [(*each[:2], each[2].replace(folder, str(final))) for each in files]

    def _sboms(self) -> dict[str, str]:
        built = native()
        if built is None:
            return {}
        told = manifest(built, version=self.distribution.get_version())
        return {sbom.NAME: sbom.render(told, folder=f"{PACKAGE}/{NATIVE}")}

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag: any Python 3, no ABI, the library's platform."""
        return "py3", "none", platform_tag(native())


class EditableWheel(editable_wheel):
    """Refuses ``pip install -e``."""

    def run(self) -> None:
        """Say why, and what to do instead."""
        msg = (
            "an editable install would run from the sources, which carry no native library, and "
            "silently leave everything to MLX. Run `make install` after each change: it builds the "
            "wheel (from the cache, where it can) and installs that."
        )
        raise UsageError(msg)


class Sdist(sdist):
    """Writes source distributions whose bytes depend on their contents alone."""

    def run(self) -> None:
        """Pack as setuptools does, then rewrite what it packed."""
        super().run()
        for _, _, archive in self.distribution.dist_files:
            if archive.endswith(".tar.gz"):
                canonical.rewrite_sdist(Path(archive))


def commands() -> dict[str, type[Command]]:
    """Return the commands that ``setup.py`` hands to setuptools."""
    return {
        "build_py": BuildPy,
        "bdist_wheel": BdistWheel,
        "editable_wheel": EditableWheel,
        "sdist": Sdist,
    }
