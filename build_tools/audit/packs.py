"""Shader packs of a wheel: their indexes, held against the files beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from build_tools.audit.findings import Finding, found
from build_tools.native import shaders

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from build_tools.audit.contents import Content

_INDEX = f"/shaders/{shaders.INDEX}"


def indexes(contents: Mapping[str, Content]) -> set[str]:
    """Return the names of the indexes, whose texts `check_packs` wants."""
    return {name for name in contents if name.endswith(_INDEX)}


def check_packs(contents: Mapping[str, Content], texts: Mapping[str, bytes]) -> Iterator[Finding]:
    """Check every pack."""
    for name, text in texts.items():
        folder = name.removesuffix(shaders.INDEX)
        inside = [each for each in contents.values() if each.name.startswith(folder)]
        hashes = {
            each.name.removeprefix(folder): each.hexadecimal("sha256")
            for each in inside
            if each.name != name
        }
        try:
            index = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield found("shader-pack", name, f"not JSON: {error}")
            continue
        for problem in shaders.problems(index, hashes):
            yield found("shader-pack", name, problem)
