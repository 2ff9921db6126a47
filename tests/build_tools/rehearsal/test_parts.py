"""What the rehearsal is made of: the index, its users, the table; `make rehearse` is all of it."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.version import Version

from build_tools.release import files, readiness
from build_tools.support.files import sha256
from tests.build_tools.rehearsal import damage, distributions, installers, platform_matrix, standin
from tests.build_tools.rehearsal.index import HOST, Index
from tests.build_tools.rehearsal.installers import Environment
from tests.build_tools.rehearsal.platform_matrix import MACHINES, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from build_tools.release.project import Project


@pytest.fixture
def index(dist: Path, tmp_path: Path) -> Iterator[Index]:
    """An index to which the release was uploaded."""
    with Index(folder=tmp_path / "index") as opened:
        done = opened.publish(files.distributions(dist))
        assert done.status == 0, done.text
        yield opened


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - loopback
        return str(answer.read().decode("utf-8"))


def _environment(folder: Path, index: Index, installer: str) -> Environment:
    python = Path(sys.executable).resolve()
    return Environment(folder=folder / installer, python=python, installer=installer, url=index.url)


def documented(path: Path) -> dict[str, str]:
    """Return machine and engine of each row of the page at ``path``."""
    cells = [
        [cell.strip() for cell in line.strip("|\n ").split("|")]
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    return {row[0]: row[2] for row in cells[1:]}


def test_the_index_listens_on_loopback_only(index: Index) -> None:
    assert index.url.startswith(f"http://{HOST}:")
    assert HOST == "127.0.0.1"


def test_the_listing(index: Index, pure: Path) -> None:
    plain = _read(f"{index.url}qwen-mfa/")
    assert f"#sha256={sha256(pure)}" in plain
    assert plain.count('data-requires-python="&gt;=3.10"') == 4  # the wheels
    assert "data-yanked" not in plain
    index.yanked[pure.name] = 'has "a" defect'
    assert 'data-yanked="has &quot;a&quot; defect"' in _read(f"{index.url}qwen-mfa/")


def test_nothing_is_served_after_it_was_closed(dist: Path, tmp_path: Path) -> None:
    with Index(folder=tmp_path / "index") as index:
        url = index.url
    with pytest.raises(urllib.error.URLError):
        _read(url)


def test_each_platform_gets_its_wheel(
    index: Index, subject: Project, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert documented(root / readiness.PLATFORMS) == {each.name: each.expected for each in MACHINES}
    # One of each kind; `make rehearse` asks pip for all of them.
    kinds = {(each.expected, each.platforms[0].split("_")[0]): each for each in MACHINES}
    monkeypatch.setattr(platform_matrix, "MACHINES", tuple(kinds.values()))
    rows = platform_matrix.rows(subject.version, url=index.url, ask_mlx=False)
    assert len(rows) == 6
    assert [row.gets for row in rows] == [row.machine.expected for row in rows]


def test_a_machine_without_a_file(index: Index) -> None:
    with pytest.raises(AssertionError, match="No matching distribution"):
        platform_matrix.choose(MACHINES[0], "99.0", url=index.url)


def test_the_document_is_read_back(tmp_path: Path) -> None:
    rows = [Row(machine=each, file="qwen_mfa-1.0-py3-none-any.whl", mlx=True) for each in MACHINES]
    path = tmp_path / "page.md"
    path.write_text(platform_matrix.document(rows, "1.0"), encoding="utf-8")
    assert documented(path) == {each.name: platform_matrix.MLX_ONLY for each in MACHINES}


def test_an_installation(index: Index, subject: Project, tmp_path: Path) -> None:
    """By uv; tests/build_tools/wheel/test_toolchains.py installs by pip."""
    environment = _environment(tmp_path, index, "uv")
    environment.create()
    environment.install("--no-deps", "qwen-mfa")
    assert environment.installed() == subject.version
    manifest = environment.manifest()
    assert manifest is None or manifest["engine"] == standin.ENGINE
    before = environment.files()
    assert installers.left_behind(before, before)
    environment.uninstall()
    assert installers.left_behind(before, environment.files()) == []


def test_an_exchanged_file_is_refused(index: Index, dist: Path, tmp_path: Path) -> None:
    environment = _environment(tmp_path, index, "uv")
    environment.create()
    environment.install("--no-deps", "qwen-mfa")
    platform = environment.tag().rpartition("-")[2]
    environment.uninstall()
    (wheel,) = dist.glob(f"*-{platform}.whl")
    damage.check_storage(environment, index, wheel)
    damage.check_sum(environment, wheel)


@pytest.mark.parametrize("text", ["0.0.0", "0.1.0", "1.0.0", "1.2.3", "1.2"])
def test_neighbours(text: str) -> None:
    below, above = map(Version, distributions.neighbours(text))
    assert below < Version(text) < above


def test_left_behind() -> None:
    before = {"lib/a.py"}
    after = {"lib/a.py", "lib/__pycache__/a.pyc", "lib/new.txt", "lib/qwen_mfa/__pycache__"}
    assert installers.left_behind(before, after) == ["lib/new.txt", "lib/qwen_mfa/__pycache__"]


def test_the_pythons_of_this_machine() -> None:
    found = installers.pythons()
    assert f"3.{sys.version_info.minor}" in found
    for version, path in found.items():
        assert path.resolve().name == f"python{version}"


def test_a_stand_in_says_so(dist: Path) -> None:
    paths = [path for path in dist.iterdir() if standin.BUILD_TAG in path.name]
    assert len(paths) == 3
    for path in paths:
        told = files.manifest(path)
        assert told is not None
        assert told["engine"] == "stand-in"
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if "/libMFAFFI." in n]
            magic = archive.read(name)[:4]
        assert magic == (b"\xcf\xfa\xed\xfe" if "macosx" in path.name else b"\x7fELF")
