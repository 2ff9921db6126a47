"""A release on this machine as far as it goes: files, an index on loopback, and installers.

`make rehearse` runs this; a plain `pytest` does not collect it, by its name. Nothing is signed, or
published elsewhere. When everything passed, the last test writes docs/platforms.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from build_tools.release import files, readiness
from build_tools.support.files import sha256
from tests.build_tools.rehearsal import damage, distributions, installers, platform_matrix, standin
from tests.build_tools.rehearsal.index import Index
from tests.build_tools.rehearsal.installers import INSTALLERS, Environment
from tests.build_tools.rehearsal.platform_matrix import MACHINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from build_tools.release.project import Project
    from tests.build_tools.rehearsal.platform_matrix import Machine, Row

ONLY_BEFORE = "only_in_the_previous_version.py"
TOKENS = "64"
OLDEST = 10  # of Python 3
PYTHONS = {int(version.split(".")[1]): path for version, path in installers.pythons().items()}
FIT = [minor for minor in PYTHONS if minor >= OLDEST]
TOO_OLD = [minor for minor in PYTHONS if minor < OLDEST][-1:]
NEWEST = FIT[-1]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal")


@pytest.fixture(scope="module")
def release(work: Path, subject: Project) -> Path:
    """Build everything that is published: real files for this machine, stand-ins for the others."""
    out = work / "dist"
    out.mkdir()
    for what, native in (("--sdist", "none"), ("--wheel", "auto"), ("--wheel", "none")):
        made = distributions.build(subject.root, work / f"{what[2:]}-{native}", [what], native)
        shutil.copy2(made, out)
    pure = out / made.name
    for target in standin.missing_targets():
        standin.make(pure, target, out, project=subject)
    return out


@pytest.fixture(scope="module")
def native(work: Path, release: Path) -> Path:
    """The wheel of this machine, with the library that its toolchain gives."""
    (built,) = files.distributions(work / "wheel-auto")
    return release / built.name


@pytest.fixture(scope="module")
def previous(work: Path, subject: Project) -> Path:
    below, _ = distributions.neighbours(subject.version)
    return distributions.build_neighbour(subject, below, work / "previous", extra=ONLY_BEFORE)


@pytest.fixture(scope="module")
def yanked(work: Path, subject: Project) -> Path:
    _, above = distributions.neighbours(subject.version)
    return distributions.build_neighbour(subject, above, work / "yanked")


@pytest.fixture(scope="module")
def index(
    work: Path, subject: Project, release: Path, previous: Path, yanked: Path
) -> Iterator[Index]:
    """What users need beside us, and all of ours, uploaded; a later version was yanked."""
    with Index(folder=work / "index") as opened:
        distributions.mirror(opened.folder, subject, [PYTHONS[minor] for minor in FIT])
        done = opened.publish([*files.distributions(release), previous, yanked])
        assert done.status == 0, done.text
        opened.yanked[yanked.name] = "yanked by the rehearsal"
        yield opened


@pytest.fixture(params=INSTALLERS)
def environment(
    request: pytest.FixtureRequest, index: Index, tmp_path: Path
) -> Callable[[int], Environment]:
    """Make an environment; each test that asks for it runs once for each installer."""

    def make(minor: int = NEWEST) -> Environment:
        made = Environment(
            folder=tmp_path / "env", python=PYTHONS[minor], installer=request.param, url=index.url
        )
        made.create()
        return made

    return make


@pytest.fixture
def newest(environment: Callable[[int], Environment]) -> Environment:
    return environment(NEWEST)


def test_everything_is_uploaded(index: Index, release: Path, previous: Path, yanked: Path) -> None:
    for path in (*files.distributions(release), previous, yanked):
        assert sha256(index.folder / path.name) == sha256(path)


def test_a_published_file_cannot_be_replaced(
    index: Index, previous: Path, yanked: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copyfile(yanked, tmp_path / previous.name))
    index.publish([other])
    assert sha256(index.folder / other.name) == sha256(previous)


def test_stand_ins_would_not_be_published(release: Path, subject: Project) -> None:
    told = "\n".join(files.problems(release, subject))
    names = [path.name for path in release.iterdir() if standin.BUILD_TAG in path.name]
    assert len(names) == len(standin.missing_targets())
    for name in names:
        assert f"{name}: its engine is {standin.ENGINE}," in told


@pytest.mark.parametrize("minor", FIT)
def test_install_run_uninstall(
    environment: Callable[[int], Environment], minor: int, subject: Project, native: Path
) -> None:
    env = environment(minor)
    env.install("qwen-mfa[cpu]")
    assert env.installed() == subject.version
    assert native.name.endswith(f"-{env.tag()}.whl")
    env.check_dependencies()

    assert env.run("--version").strip() == f"qwen-mfa {subject.version}"
    manifest = env.manifest()
    assert manifest is None or manifest["package"]["version"] == subject.version
    env.run("info")
    env.run("selftest", "--image-tokens", TOKENS)

    before = env.files()
    env.uninstall()
    assert installers.left_behind(before, env.files()) == []


@pytest.mark.parametrize("minor", TOO_OLD)
def test_a_python_that_is_too_old_is_refused(
    environment: Callable[[int], Environment], minor: int
) -> None:
    env = environment(minor)
    done = env.try_install("--no-deps", "qwen-mfa")
    assert done.status != 0, done.text
    assert env.installed() is None


def test_upgrade(newest: Environment, subject: Project) -> None:
    """To this version, though a later one is there, yanked."""
    below, _ = distributions.neighbours(subject.version)
    newest.install("--no-deps", f"qwen-mfa=={below}")
    assert any(ONLY_BEFORE in name for name in newest.files())
    newest.install("--no-deps", "--upgrade", "qwen-mfa")
    assert newest.installed() == subject.version
    assert not [name for name in newest.files() if Path(ONLY_BEFORE).stem in name]


def test_a_yanked_version_only_when_asked_for_exactly(
    newest: Environment, subject: Project
) -> None:
    _, above = distributions.neighbours(subject.version)
    done = newest.install("--no-deps", f"qwen-mfa=={above}")
    assert newest.installed() == above
    assert "yanked" in done.text


def test_a_file_exchanged_after_the_upload_is_refused(
    newest: Environment, index: Index, native: Path
) -> None:
    damage.check_storage(newest, index, native)


def test_another_file_than_the_checksum_names_is_refused(newest: Environment, native: Path) -> None:
    damage.check_sum(newest, native)


def test_the_source_distribution_builds(
    newest: Environment, subject: Project, native: Path
) -> None:
    """As an installer builds it where there is no wheel."""
    newest.install("--no-binary", "qwen-mfa", "qwen-mfa[cpu]")
    assert newest.installed() == subject.version
    assert newest.manifest() is not None or native.name.endswith("any.whl")
    newest.run("selftest", "--image-tokens", TOKENS)


@pytest.fixture(scope="module")
def rows(index: Index, subject: Project) -> list[Row]:
    return platform_matrix.rows(subject.version, url=index.url, ask_mlx=True)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_each_machine_gets_its_wheel(machine: Machine, rows: list[Row]) -> None:
    (row,) = [each for each in rows if each.machine == machine]
    assert row.gets == machine.expected, row.file


def test_the_page_is_written(
    request: pytest.FixtureRequest, rows: list[Row], subject: Project
) -> None:
    if request.session.testsfailed:
        pytest.skip("written only when everything passed")
    text = platform_matrix.document(rows, subject.version)
    (subject.root / readiness.PLATFORMS).write_text(text, encoding="utf-8")
