"""What a wheel says of the library in it: ``qwen_mfa/_native/manifest.json``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from build_tools.binaries.relocate import elf, macho
from build_tools.native import portable
from build_tools.native.engine import Native
from build_tools.support import files, paths
from build_tools.wheel import fingerprint

PACKAGE = "qwen_mfa"
NATIVE = f"{PACKAGE}/_native"
MANIFEST = f"{NATIVE}/manifest.json"
DECLARATIONS = f"{PACKAGE}/native/abi.cdef"
SCHEMA = 2


def platform_tag(built: Native | None) -> str:
    """Return the wheel's platform tag, read off the library itself."""
    if built is None:
        return "any"
    if portable.SYSTEM == "linux":
        return elf.manylinux_tag(built.library)
    return macho.platform_tag(built.library)


def describe(built: Native, *, version: str) -> dict[str, Any]:
    """Return the manifest of a wheel that embeds ``built``."""
    return {
        "schema": SCHEMA,
        "package": {"name": "qwen-mfa", "version": version},
        "platform_tag": platform_tag(built),
        "build_fingerprint": fingerprint.read(paths.ROOT),
        "files": {name: files.sha256(path) for name, path in sorted(built.files.items())},
        **built.facts,
    }


def render(facts: dict[str, Any]) -> str:
    """Return the manifest as it stands in the wheel."""
    return json.dumps(facts, indent=2) + "\n"


def embed(built: Native, folder: Path, *, version: str) -> None:
    """Write the library, what belongs to it, and the manifest into ``folder``."""
    for name, file in built.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        target.chmod(0o755 if file == built.library else 0o644)
    text = render(describe(built, version=version))
    (folder / "manifest.json").write_text(text, encoding="utf-8")
