"""What the platform tags of a wheel promise: system, architecture, oldest version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from auditwheel.architecture import Architecture
from auditwheel.libc import Libc
from auditwheel.policy import WheelPolicies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from auditwheel.policy import Policy

MACOS = re.compile(r"macosx_(\d+)_(\d+)_(\w+)")
GLIBC = re.compile(r"manylinux_(\d+)_(\d+)_(\w+)")
MUSL = re.compile(r"musllinux_(\d+)_(\d+)_(\w+)")
LINUX = re.compile(r"linux_(\w+)")
LEGACY = {"manylinux1": "manylinux_2_5", "manylinux2010": "manylinux_2_12"}
LEGACY["manylinux2014"] = "manylinux_2_17"
UNIVERSAL = {
    "universal2": ("arm64", "x86_64"),
    "universal": ("i386", "ppc", "ppc64", "x86_64"),
    "intel": ("i386", "x86_64"),
    "fat": ("i386", "ppc"),
    "fat3": ("i386", "ppc", "x86_64"),
    "fat64": ("ppc64", "x86_64"),
}
FIRST_ARM64 = (11, 0)  # no older macOS runs there, so an older tag promises nothing more


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One platform that a wheel's tag admits."""

    system: str  # "macos", "glibc", "musl", "linux", "windows", "any" or "other"
    tag: str
    architecture: str = ""
    version: tuple[int, int] | None = None


def promises(platforms: Iterable[str]) -> tuple[Promise, ...]:
    """Translate platform tags; what is unknown comes out as "other"."""
    return tuple(promise for tag in sorted(platforms) for promise in _promises(tag))


def _promises(tag: str) -> list[Promise]:
    name = tag
    for old, new in LEGACY.items():
        name = re.sub(rf"^{old}_", f"{new}_", name)
    if tag == "any":
        return [Promise(system="any", tag=tag)]
    if tag in {"win32", "win_amd64", "win_arm64"}:
        return [Promise(system="windows", tag=tag, architecture=tag)]
    if match := MACOS.fullmatch(name):
        version = (int(match[1]), int(match[2]))
        return [
            Promise(
                system="macos",
                tag=tag,
                architecture=each,
                version=max(version, FIRST_ARM64) if each == "arm64" else version,
            )
            for each in UNIVERSAL.get(match[3], (match[3],))
        ]
    for system, pattern in (("glibc", GLIBC), ("musl", MUSL)):
        if match := pattern.fullmatch(name):
            version = (int(match[1]), int(match[2]))
            return [Promise(system=system, tag=tag, architecture=match[3], version=version)]
    if match := LINUX.fullmatch(name):
        return [Promise(system="linux", tag=tag, architecture=match[1])]
    return [Promise(system="other", tag=tag)]


@lru_cache
def linux_policy(system: str, architecture: str, version: tuple[int, int] | None) -> Policy | None:
    """Return auditwheel's policy: the nearest that is as new as ``version``, or the newest.

    ``None`` for architectures that auditwheel does not know.
    """
    libc = Libc.MUSL if system == "musl" else Libc.GLIBC
    try:
        machine = Architecture(architecture)
    except ValueError:
        return None
    if libc == Libc.MUSL:
        wanted = "musllinux_1_2" if version is None or version >= (1, 2) else "musllinux_1_1"
        policies = WheelPolicies(libc=libc, arch=machine, musl_policy=wanted)
    else:
        policies = WheelPolicies(libc=libc, arch=machine)
    known = []
    for policy in policies:
        match = (MUSL if libc == Libc.MUSL else GLIBC).fullmatch(policy.name)
        if match:
            known.append(((int(match[1]), int(match[2])), policy))
    known.sort(key=lambda each: each[0])
    if not known:
        return None
    newer = [policy for at, policy in known if version is None or at >= version]
    return newer[0] if newer and version is not None else known[-1][1]
