"""Find paths of the machine that built something, which must not stand in a wheel."""

from __future__ import annotations

import re

# A folder of one user, of a toolchain or of a CI workspace. What a program may rightly name on any
# machine (/tmp, /usr, /Users/Shared) is left out. The pattern starts with one letter, which `re`
# finds fast; what stands before is looked at afterwards.
PATH = re.compile(
    rb"""/(?<![\w.~/\\-]/)(?:
      (?:Users|home)/(?!Shared\b)[\w.-]+/
    | root/[\w.-]
    | (?:private/)?var/folders/\w
    | (?:private/)?tmp/(?:pip-|build|tmp\w{8})
    | (?:private/)?var/run/com\.apple\.security\.cryptexd/
    | Applications/Xcode
    | Library/Developer/
    | github/workspace | __w/ | builds/[\w-]+/
    | opt/homebrew/Cellar/ | usr/local/Cellar/
    )[^\x00-\x1f\x7f"'<>|]{0,160}""",
    re.VERBOSE,
)
MAX_PATHS = 10_000
SHOWN = 3


def build_paths(data: bytes) -> str:
    """Return up to three such paths in ``data`` for people, "" when there are none."""
    found: dict[str, None] = {}
    for number, match in enumerate(PATH.finditer(data)):
        if number >= MAX_PATHS or len(found) == SHOWN:
            break
        found.setdefault(match[0].decode("utf-8", "backslashreplace"))
    return "; ".join(found)
