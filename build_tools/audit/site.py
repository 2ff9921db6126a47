"""The wheel as its loader sees it after installation."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from build_tools.audit.places import installed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from build_tools.audit.contents import Content
    from build_tools.audit.platforms import Promise


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a native file of the wheel may count on."""

    promises: tuple[Promise, ...]
    names: frozenset[str]  # installed names, relative to site-packages
    basenames: frozenset[str]
    requires_others: bool  # METADATA has Requires-Dist

    @property
    def any_platform(self) -> bool:
        """Whether the tags promise every platform (then each library is out of place anyway)."""
        return any(each.system == "any" for each in self.promises)

    def holds(self, name: str) -> bool:
        """Say whether the wheel installs a file called ``name``."""
        return name in self.names

    def elsewhere(self, dependency: str) -> bool:
        """Say whether the wheel holds a file of that base name in some folder."""
        return posixpath.basename(dependency) in self.basenames


def site_of(
    contents: Mapping[str, Content], promises: tuple[Promise, ...], *, requires_others: bool
) -> Site:
    """Describe the wheel after installation."""
    names = frozenset(map(installed, contents))
    return Site(
        promises=promises,
        names=names,
        basenames=frozenset(map(posixpath.basename, names)),
        requires_others=requires_others,
    )
