"""Which native library a wheel embeds, and everything that goes beside it.

``QWEN_MFA_ENGINE`` chooses: ``metal`` (the pinned upstream source with our repairs; macOS),
``portable`` (this repository's own C code) or ``auto``: metal on a Mac that can build it, portable
elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_tools.native import portable
from build_tools.native.cache import Built
from build_tools.support import paths
from build_tools.support.console import say
from build_tools.support.errors import ToolchainError, UsageError

ENGINE = "QWEN_MFA_ENGINE"
CHOICES = ("auto", "metal", "portable")
# Of a library's manifest, what the wheel's says too.
FACTS = (
    "engine", "built_by", "compiler", "flags", "sources", "pin", "overlay", "toolchain",
    "environment", "shader_packs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Native:
    """What a wheel embeds.

    Attributes:
        library: The library's file.
        files: Every file to embed, the library included, by its path inside ``_native``.
        facts: What the wheel's manifest says of the library and how it came to be.

    """

    library: Path
    files: dict[str, Path]
    facts: dict[str, Any]


def build(environ: Mapping[str, str] = os.environ) -> Native | None:
    """Build the library that ``environ`` asks for, or take it from a cache.

    Returns:
        ``None`` for a wheel without a library: no toolchain, or ``QWEN_MFA_NATIVE=none``.

    Raises:
        UsageError: The variable has an unknown value.
        BuildToolsError: The build failed, or what is insisted on cannot be built here.

    """
    choice = environ.get(ENGINE, "auto")
    if choice not in CHOICES:
        msg = f"{ENGINE}={choice!r} is not one of {', '.join(CHOICES)}"
        raise UsageError(msg)
    # An explicit toolchain is one for the portable engine, or for no library at all.
    wants_metal = portable.SYSTEM == "darwin" and portable.CHOICE not in environ
    if choice == "metal" or (choice == "auto" and wants_metal):
        try:
            return describe(_build_metal())
        except ToolchainError as error:
            if choice == "metal":
                raise
            say(f"Not building the Metal library: {error}")
            say("Building the portable engine instead; on a Mac with a GPU, MLX will compute.")
    built = portable.build()
    return None if built is None else describe(built)


def describe(built: Built) -> Native:
    """Describe a finished library: its resources, shader packs and licences go with it."""
    told = built.manifest
    facts = {name: told[name] for name in FACTS if name in told}
    if "toolchain" in told:
        facts["compiler"] = ", ".join(f"{k} {v}" for k, v in told["toolchain"].items())
    size = built.library.stat().st_size
    return Native(
        library=built.library,
        # The wheel's own manifest takes the place of the build's.
        files={name: built.folder / name for name in told["files"]},
        facts={**facts, "library": {**told["library"], "size": size}},
    )


def _build_metal() -> Built:
    # Imported here: what they need is not there where wheels are built for Linux.
    from build_tools.native import metal  # noqa: PLC0415
    from build_tools.source import fetch, lock, overlay, remotes  # noqa: PLC0415

    work = paths.ROOT / "build" / "native"
    request = metal.Request(
        lock=lock.load(), repairs=overlay.load(overlay.FOLDER), cache=fetch.CACHE, work=work
    )
    return metal.build(request, remotes=remotes.choose())
