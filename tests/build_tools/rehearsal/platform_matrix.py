"""The platform matrix: which of a release's files an installer chooses for which machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import parse_wheel_filename

from tests.build_tools.rehearsal import installers

if TYPE_CHECKING:
    from collections.abc import Iterable

PYTHON = "3.13"
OLDEST_GLIBC_MINOR = 17
MLX_ONLY, METAL, LINUX = "MLX only", "Metal engine", "portable engine"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A kind of machine: the platform tags of its installer, best first, and what it should get."""

    name: str
    platforms: tuple[str, ...]
    expected: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one machine gets; ``mlx`` is whether MLX can be installed there, None if not asked."""

    machine: Machine
    file: str
    mlx: bool | None

    @property
    def gets(self) -> str:
        """The kind of the file."""
        return kind_of(self.file)


def _glibc(minor: int, arch: str) -> tuple[str, ...]:
    newest_first = range(minor, OLDEST_GLIBC_MINOR - 1, -1)
    return tuple(f"manylinux_2_{each}_{arch}" for each in newest_first)


def _mac(version: int, arch: str) -> tuple[str, ...]:
    return (f"macosx_{version}_0_{arch}",)


MACHINES = (
    Machine(name="macOS 26, Apple silicon", platforms=_mac(26, "arm64"), expected=METAL),
    Machine(name="macOS 15, Apple silicon", platforms=_mac(15, "arm64"), expected=METAL),
    Machine(name="macOS 14, Apple silicon", platforms=_mac(14, "arm64"), expected=MLX_ONLY),
    Machine(name="macOS 26, Intel", platforms=_mac(26, "x86_64"), expected=MLX_ONLY),
    Machine(name="macOS 15, Intel", platforms=_mac(15, "x86_64"), expected=MLX_ONLY),
    Machine(name="macOS 14, Intel", platforms=_mac(14, "x86_64"), expected=MLX_ONLY),
    Machine(name="Linux, glibc 2.39, x86-64", platforms=_glibc(39, "x86_64"), expected=LINUX),
    Machine(name="Linux, glibc 2.39, Arm", platforms=_glibc(39, "aarch64"), expected=LINUX),
    Machine(name="Linux, glibc 2.35, x86-64", platforms=_glibc(35, "x86_64"), expected=LINUX),
    Machine(name="Linux, glibc 2.35, Arm", platforms=_glibc(35, "aarch64"), expected=LINUX),
    Machine(name="Linux, glibc 2.39, RISC-V", platforms=_glibc(39, "riscv64"), expected=MLX_ONLY),
    Machine(name="Linux, musl, x86-64", platforms=("musllinux_1_2_x86_64",), expected=MLX_ONLY),
    Machine(name="Linux, musl, Arm", platforms=("musllinux_1_2_aarch64",), expected=MLX_ONLY),
    Machine(name="Windows, x86-64", platforms=("win_amd64",), expected=MLX_ONLY),
    Machine(name="Windows, Arm", platforms=("win_arm64",), expected=MLX_ONLY),
)  # fmt: skip


def kind_of(filename: str) -> str:
    """Return which kind of wheel ``filename`` is, by its platform tag."""
    platforms = {tag.platform for tag in parse_wheel_filename(filename)[3]}
    if platforms == {"any"}:
        return MLX_ONLY
    return METAL if all(each.startswith("macosx_") for each in platforms) else LINUX


def choose(machine: Machine, version: str, *, url: str) -> str:
    """Return the file that pip on ``machine`` takes from the index at ``url``."""
    with tempfile.TemporaryDirectory(prefix="qwen-mfa-download-") as folder:
        done = _pip(
            ["download", "--no-deps", "--quiet", "--dest", folder, *_target(machine)],
            f"qwen-mfa=={version}",
            variables=installers.variables(url),
        )
        found = [path.name for path in Path(folder).iterdir()]
        assert done.returncode == 0, f"{machine.name}: {done.stderr}"
        assert len(found) == 1, f"{machine.name}: {found}"
        return found[0]


def has_mlx(machine: Machine) -> bool:
    """Whether the index that this machine normally uses has an MLX for ``machine``."""
    with tempfile.TemporaryDirectory(prefix="qwen-mfa-mlx-") as folder:
        done = _pip(
            ["install", "--dry-run", "--no-deps", "--quiet", "--target", folder, *_target(machine)],
            "mlx>=0.32",
            variables=dict(os.environ),
        )
    if done.returncode == 0:
        return True
    assert "No matching distribution" in done.stderr, f"{machine.name}: {done.stderr}"
    return False


def rows(version: str, *, url: str, ask_mlx: bool) -> list[Row]:
    """Return what each machine gets from the index at ``url``."""
    return [
        Row(
            machine=machine,
            file=choose(machine, version, url=url),
            mlx=has_mlx(machine) if ask_mlx else None,
        )
        for machine in MACHINES
    ]


def document(found: Iterable[Row], version: str) -> str:
    """Return the page of the documentation."""
    lines = [
        "# Platforms",
        "",
        f"<!-- version: {version} -->",
        f"Written by `make rehearse` for version {version}: what pip chose for each of these",
        "machines, from an index with every file of the release. `MLX` says whether MLX itself",
        "could be had there that day; where it could not, this package has nothing to run on.",
        "The wheels for machines that the rehearsing one cannot build for were stand-ins of the",
        "same names ([releasing.md](releasing.md)).",
        "",
        "| Machine | Wheel | Engine | MLX |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.machine.name} | `{_shown(row.file)}` | {row.gets} | {_yes(row.mlx)} |"
        for row in found
    ]
    return "\n".join(lines) + "\n"


def _target(machine: Machine) -> list[str]:
    platforms = [word for each in machine.platforms for word in ("--platform", each)]
    python = ["--python-version", PYTHON, "--implementation", "cp"]
    return ["--only-binary", ":all:", *python, *platforms]


def _pip(
    arguments: list[str], requirement: str, *, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments, requirement]
    return subprocess.run(
        command, env=variables, check=False, capture_output=True, text=True, timeout=600
    )


def _shown(filename: str) -> str:
    """Leave out what depends on the machine that rehearses: build tags, and the glibc of Linux."""
    tags = sorted(tag.platform for tag in parse_wheel_filename(filename)[3])
    return re.sub(r"manylinux_2_\d+_", "manylinux_2_*_", f"py3-none-{'.'.join(tags)}")


def _yes(state: bool | None) -> str:
    return {True: "yes", False: "no", None: "not asked"}[state]
