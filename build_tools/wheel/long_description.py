"""README.md as a package index shows it: there, links into the repository lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from build_tools.support.toml import tomllib

# [text](target), target neither an address nor a place on the page.
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?!https?://|mailto:|#)(?P<target>[^)\s]+)\)")
REPOSITORY = "Repository"


def read(root: Path) -> str:
    """Return the long description of the project in ``root``."""
    data = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    urls: dict[str, Any] = data["project"].get("urls", {})
    return render((root / "README.md").read_text(encoding="utf-8"), urls.get(REPOSITORY))


def render(readme: str, repository: str | None) -> str:
    """Make links absolute below ``repository``; without one, leave their text and their file."""

    def replace(link: re.Match[str]) -> str:
        text, target = link["text"], link["target"]
        if repository is not None:
            return f"[{text}]({repository.rstrip('/')}/blob/HEAD/{target})"
        return text if text == target else f"{text} ({target})"

    return _LINK.sub(replace, readme)
