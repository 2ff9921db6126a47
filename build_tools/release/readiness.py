"""Whether HEAD could be released now: one answer a condition, each with what is to be done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from packaging.version import InvalidVersion, Version

from build_tools.release import assemble, changelog, files
from build_tools.release.project import TAG_PREFIX, Project
from build_tools.support.errors import BuildToolsError
from build_tools.support.process import capture

SHOWN = 3
USES = re.compile(r"^\s*(?:- )?uses: (?P<action>\S+)(?P<comment>.*)$", re.MULTILINE)
PLATFORMS = "docs/platforms.md"
MARK = re.compile(r"^<!-- version: (?P<version>\S+) -->$", re.MULTILINE)
OWN = ("./", "$/")  # actions and workflows of this repository
PINNED = re.compile(r"[^@\s]+@[0-9a-f]{40}")


class State(Enum):
    """What is known of a condition."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "not known here"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One condition of a release."""

    condition: str
    state: State
    detail: str


class _Unmet(Exception):  # noqa: N818 - not an error of the program
    """A condition is not met; the text says what is to be done."""

    state = State.NO


class _Unknown(_Unmet):
    """Whether a condition is met cannot be known here; the text says where."""

    state = State.UNKNOWN


def answers(project: Project, *, tag: str | None = None, built: Path | None = None) -> list[Answer]:
    """Return the state of every condition.

    Args:
        project: The project at its working tree.
        tag: The tag that is being released; None before there is one.
        built: Folder with the files of the release; None where they are not built yet.

    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("the working tree is HEAD", lambda: _clean(project)),
        ("the version is new", lambda: _new_version(project, tag)),
        ("the tag is HEAD's", lambda: _tag(project, tag)),
        ("CHANGELOG.md has the version", lambda: _changelog(project)),
        ("workflows use pinned actions only", lambda: _pinned(project)),
        ("the platform matrix is of this version", lambda: _table(project)),
        ("every file is there", lambda: _files(built, project)),
        ("CI passed at this commit; the index trusts release.yml", _elsewhere),
    ]
    return [_ask(condition, check) for condition, check in checks]


def _ask(condition: str, check: Callable[[], str]) -> Answer:
    try:
        return Answer(condition=condition, state=State.YES, detail=check())
    except (_Unmet, BuildToolsError) as error:
        state = error.state if isinstance(error, _Unmet) else State.NO
        return Answer(condition=condition, state=state, detail=str(error))


def _git(project: Project, *arguments: str) -> str:
    return capture(["git", "-C", str(project.root), *arguments])


def _clean(project: Project) -> str:
    changed = _git(project, "status", "--porcelain").splitlines()
    if changed:
        msg = f"{len(changed)} files differ ({changed[0].strip()}, …): commit them or put them away"
        raise _Unmet(msg)
    return _git(project, "rev-parse", "--short=12", "HEAD")


def _new_version(project: Project, tag: str | None) -> str:
    released = []
    for name in _git(project, "tag", "--list", f"{TAG_PREFIX}*").splitlines():
        try:
            version = Version(name.removeprefix(TAG_PREFIX))
        except InvalidVersion:
            continue
        if name not in (tag, project.tag):  # whose commit is looked at by itself
            released.append(version)
    newest = max(released, default=None)
    if newest is not None and Version(project.version) <= newest:
        msg = (
            f"{project.version} is not above {newest}, which is tagged: raise it in pyproject.toml"
        )
        raise _Unmet(msg)
    return f"{project.version}, after {newest or 'no release'}"


def _tag(project: Project, tag: str | None) -> str:
    here = _git(project, "tag", "--points-at", "HEAD").splitlines()
    if tag is None:
        if project.tag in here:
            return project.tag
        known = _git(project, "tag", "--list", project.tag)
        if known:
            msg = f"{project.tag} exists, but at another commit"
            raise _Unmet(msg)
        return f"none yet; `git tag -s {project.tag}` makes it"
    assemble.require_tag(tag, project)
    if tag not in here:
        msg = f"{tag} does not point at HEAD: fetch the tags, and check out the tag"
        raise _Unmet(msg)
    return tag


def _changelog(project: Project) -> str:
    sections = changelog.read(project.changelog)
    changelog.notes(project.changelog, project.version)
    names = [each.name for each in sections]
    if names[:2] != [changelog.UNRELEASED, project.version]:
        msg = f"[{changelog.UNRELEASED}] has to come first, then [{project.version}]"
        raise _Unmet(msg)
    if sections[0].text:
        msg = f"[{changelog.UNRELEASED}] is not empty: move it into [{project.version}]"
        raise _Unmet(msg)
    return f"[{project.version}] - {sections[1].date}"


def _pinned(project: Project) -> str:
    workflows = sorted((project.root / ".github" / "workflows").glob("*.yml"))
    if not workflows:
        msg = "there are no workflows in .github/workflows"
        raise _Unmet(msg)
    loose = [
        f"{path.name}: {match['action']}"
        for path in workflows
        for match in USES.finditer(path.read_text(encoding="utf-8"))
        if not match["action"].startswith(OWN) and not PINNED.fullmatch(match["action"])
    ]
    if loose:
        msg = f"not pinned by commit: {', '.join(loose[:SHOWN])}"
        raise _Unmet(msg)
    return f"{len(workflows)} workflows"


def _table(project: Project) -> str:
    path = project.root / PLATFORMS
    mark = MARK.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if mark is None or mark["version"] != project.version:
        msg = f"{PLATFORMS} is not of {project.version}: run `make rehearse`, commit it"
        raise _Unmet(msg)
    return PLATFORMS


def _files(built: Path | None, project: Project) -> str:
    if built is None:
        msg = "the release workflow builds them; --dist DIR checks a folder"
        raise _Unknown(msg)
    wrong = files.problems(built, project)
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise _Unmet("; ".join(wrong[:SHOWN]) + more)
    return f"{len(files.KINDS)} files in {built}"


def _elsewhere() -> str:
    msg = "look at the repository's Actions page and the settings in docs/releasing.md"
    raise _Unknown(msg)
