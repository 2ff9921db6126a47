"""setuptools' own commands, with the native library embedded on the way.

One wheel a platform serves every Python (``py3-none-<platform>``): the library is bound by cffi in
ABI mode, so nothing in it depends on the interpreter.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from setuptools import Distribution
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.command.sdist import sdist

from build_tools.native import engine
from build_tools.native.engine import Native
from build_tools.support.errors import UsageError
from build_tools.support.paths import ROOT
from build_tools.wheel import canonical, long_description, manifest, sbom


class NativeDistribution(Distribution):
    """The project, with the library that its wheel embeds: built once, when it is first needed."""

    @cached_property
    def native(self) -> Native | None:
        """The library; ``None`` for the MLX-only wheel."""
        return engine.build()

    def has_ext_modules(self) -> bool:
        """Say whether a wheel is made that is for one platform.

        Only then: a source distribution would look for the sources of extension modules.
        """
        return "bdist_wheel" in self.command_obj and self.native is not None


class BuildPy(build_py):
    """Copies the modules, then embeds the library and its manifest."""

    def run(self) -> None:
        """Start from an empty folder, so that no file of an earlier build slips in."""
        target = Path(self.build_lib) / manifest.PACKAGE
        if target.exists():
            shutil.rmtree(target)
        super().run()
        built = _native(self)
        if built is not None:
            folder = Path(self.build_lib) / manifest.NATIVE
            manifest.embed(built, folder, version=self.distribution.get_version())


class BdistWheel(bdist_wheel):
    """Tags the wheel ``py3-none-<platform>``."""

    def finalize_options(self) -> None:
        """Mark the wheel as a platform wheel unless it carries no library."""
        super().finalize_options()
        self.root_is_pure = _native(self) is None

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
            self.check(made)
            made.replace(final / made.name)
        made_files = self.distribution.dist_files
        made_files[:] = [(*each[:2], each[2].replace(folder, str(final))) for each in made_files]

    def check(self, made: Path) -> None:
        """Refuse a wheel; `commands` sets what does."""

    def _sboms(self) -> dict[str, str]:
        built = _native(self)
        if built is None:
            return {}
        facts = manifest.describe(built, version=self.distribution.get_version())
        return {sbom.NAME: sbom.render(facts, folder=manifest.NATIVE)}

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag: any Python 3, no ABI, the library's platform."""
        return "py3", "none", manifest.platform_tag(_native(self))


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


def _native(command: BuildPy | BdistWheel) -> Native | None:
    return cast("NativeDistribution", command.distribution).native


def options(check: Callable[[Path], None]) -> dict[str, Any]:
    """Return what ``setup.py`` hands to setuptools.

    Args:
        check: Raises for a wheel that must not appear in ``dist/``. It is handed in, because the
            audit lies above this package and reads what is made here.

    """

    class Checked(BdistWheel):
        def check(self, made: Path) -> None:
            check(made)

    return {
        "long_description": long_description.read(ROOT),
        "long_description_content_type": "text/markdown",
        "distclass": NativeDistribution,
        "cmdclass": {
            "build_py": BuildPy,
            "bdist_wheel": Checked,
            "editable_wheel": EditableWheel,
            "sdist": Sdist,
        },
    }
