"""The README on a package index: no link leads nowhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from build_tools.wheel import long_description

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "See [docs/a.md](docs/a.md), [how](docs/b.md#c) and [MLX](https://example.org/mlx)."


def relative_links(text: str) -> list[str]:
    return [x for x in re.findall(r"\]\(([^)]*)\)", text) if not x.startswith("https://")]


def test_without_a_repository_links_become_text() -> None:
    found = long_description.render(TEXT, None)
    assert found == "See docs/a.md, how (docs/b.md#c) and [MLX](https://example.org/mlx)."


def test_a_repository_makes_them_absolute() -> None:
    found = long_description.render(TEXT, "https://example.org/me/qwen-mfa/")
    assert "[docs/a.md](https://example.org/me/qwen-mfa/blob/HEAD/docs/a.md)" in found
    assert "[how](https://example.org/me/qwen-mfa/blob/HEAD/docs/b.md#c)" in found
    assert relative_links(found) == []


def test_this_readme(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert relative_links(readme)  # on GitHub they work
    for target in relative_links(readme):
        assert (root / target.split("#")[0]).is_file(), target
    assert relative_links(long_description.read(root)) == []


def test_a_fork_sets_the_address_in_one_place(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(TEXT, encoding="utf-8")
    project = tmp_path / "pyproject.toml"
    for urls, says in (("", "docs/a.md,"), ('urls = {Repository = "https://x.org"}', "x.org/blob")):
        project.write_text(f'[project]\nname = "x"\n{urls}\n', encoding="utf-8")
        assert says in long_description.read(tmp_path)
