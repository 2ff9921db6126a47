"""A release on this machine as far as it goes: files, an index on loopback, and installers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from build_tools.release import files, installers, project, standin
from build_tools.support import process
from build_tools.support.console import say, step
from build_tools.support.errors import ReleaseError
from build_tools.support.files import sha256
from build_tools.wheel import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from build_tools.release.index import Index
    from build_tools.release.installers import Environment
    from build_tools.release.project import Project

ONLY_BEFORE = "only_in_the_previous_version.py"
NOT_COPIED = (".git", ".venv*", "build", "dist", ".build", ".cache", "__pycache__", "*_cache")
TOKENS = "64"


@dataclass(frozen=True, kw_only=True)
class Built:
    """The files of the rehearsed release, this machine's wheel among them, and its neighbours."""

    release: tuple[Path, ...]
    native: Path
    previous: Path
    yanked: Path


@dataclass(kw_only=True)
class Report:
    """What was tried and how it ended; a failure does not stop the rest."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def check(self, what: str, action: Callable[[], str | None]) -> None:
        """Run ``action``; it raises when the thing does not hold, and may return a detail."""
        try:
            detail = action()
        except Exception as error:  # noqa: BLE001 - the report tells whatever went wrong
            self.failed.append(f"{what}: {error}")
            say(f"FAILED  {what}: {error}")
            return
        told = f"{what}: {detail}" if detail else what
        self.passed.append(told)
        say(f"ok      {told}")


def build(work: Path, subject: Project) -> Built:
    """Build everything that is published: real files for this machine, stand-ins for the others."""
    out = work / "dist"
    with step("Building the source distribution and the wheels"):
        sdist = front_end(subject.root, work / "sdist", ["--sdist"], "none")
        native = front_end(subject.root, work / "native", ["--wheel"], "auto")
        pure = front_end(subject.root, work / "pure", ["--wheel"], "none")
    with step("Cross-compiling the stand-in wheels"):
        others = [
            standin.make(pure, target, work / "standins", project=subject)
            for target in standin.missing_targets()
        ]
    below, above = project.neighbours(subject.version)
    with step(f"Building {below} and {above}"):
        previous = _neighbour(subject, below, work / "previous", extra=ONLY_BEFORE)
        yanked = _neighbour(subject, above, work / "yanked")
    out.mkdir()
    moved = [Path(shutil.copy2(path, out)) for path in (sdist, native, pure, *others)]
    return Built(release=tuple(moved), native=out / native.name, previous=previous, yanked=yanked)


def mirror(folder: Path, subject: Project, pythons: Iterable[Path]) -> None:
    """Copy everything that users need beside us from the machine's own index into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        need
        for need in subject.build_requires
        if (marker := Requirement(need).marker) is None or marker.evaluate()
    ]
    for python in pythons:
        with step(f"Copying dependencies for {python.name}"):
            command = [
                str(python), "-m", "pip", "download", "--quiet", "--only-binary", ":all:",
                "--dest", str(folder), "mlx[cpu]>=0.32" if sys.platform == "linux" else "mlx>=0.32",
                "cffi>=1.17", *wanted,
            ]  # fmt: skip
            process.run(command)


def publish(index: Index, paths: Iterable[Path]) -> installers.Outcome:
    """Upload ``paths`` as a publisher does."""
    command = [
        installers.uv(), "publish", "--publish-url", index.upload_url,
        "--trusted-publishing", "never",
        "--username", "rehearsal", "--password", "rehearsal", *map(str, paths),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env=installers.variables(index.url),
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return installers.Outcome(status=done.returncode, text=done.stdout)


def check_publishing(report: Report, index: Index, built: Built, subject: Project) -> None:
    """Publish; then try what must be refused."""
    everything = [*built.release, built.previous, built.yanked]

    def upload() -> str:
        done = publish(index, everything)
        absent = [path.name for path in everything if not (index.folder / path.name).is_file()]
        _require(done.status == 0 and not absent, f"{absent} not there\n{done.text}")
        index.yanked[built.yanked.name] = "yanked by the rehearsal"
        return f"{len(everything)} files"

    def replace() -> None:
        other = index.folder.parent / "other" / built.previous.name
        other.parent.mkdir(exist_ok=True)
        shutil.copyfile(built.yanked, other)
        before = sha256(index.folder / other.name)
        publish(index, [other])
        _require(sha256(index.folder / other.name) == before, "the file was replaced")

    def refuse() -> str:
        told = "\n".join(files.problems(built.release[0].parent, subject))
        standins = [p.name for p in built.release if standin.BUILD_TAG in p.name]
        missed = [
            name for name in standins if f"{name}: its engine is {standin.ENGINE}," not in told
        ]
        _require(bool(standins) and not missed, f"not refused: {missed}")
        return f"{len(standins)} refused"

    report.check("upload everything", upload)
    report.check("a published file cannot be replaced", replace)
    report.check("stand-in wheels would not be published", refuse)


def check_installation(report: Report, env: Environment, subject: Project, *, native: str) -> None:
    """Install, run, uninstall: what every installer is asked for."""
    who = f"{env.installer}, Python {_short(env.python)}"

    def install() -> str:
        env.create()
        env.install("qwen-mfa[cpu]")
        _require(env.installed() == subject.version, f"got {env.installed()}")
        _require(env.tag() == native, f"got the wheel {env.tag()}")
        env.check_dependencies()
        return env.tag()

    def run() -> str:
        told = env.run("--version").strip()
        _require(told == f"qwen-mfa {subject.version}", told)
        manifest = env.manifest()
        if manifest is not None:
            _require(manifest["package"]["version"] == subject.version, str(manifest["package"]))
        env.run("info")
        env.run("selftest", "--image-tokens", TOKENS)
        return f"{told}; its manifest agrees; info and selftest pass"

    def uninstall() -> None:
        before = env.files()
        env.uninstall()
        left = installers.left_behind(before, env.files())
        _require(not left, f"left: {left[:5]}")

    report.check(f"{who}: install", install)
    report.check(f"{who}: run", run)
    report.check(f"{who}: uninstall leaves nothing", uninstall)


def check_refused(report: Report, env: Environment, python: str) -> None:
    """A Python that is too old is told so, and nothing is installed."""

    def refuse() -> str:
        env.create()
        done = env.try_install("--no-deps", "qwen-mfa")
        _require(done.status != 0 and env.installed() is None, done.text)
        return "refused"

    report.check(f"{env.installer}, Python {python}, which is too old", refuse)


def check_versions(report: Report, env: Environment, subject: Project) -> None:
    """Upgrade from the previous version; meet the yanked one."""
    below, above = project.neighbours(subject.version)

    def upgrade() -> str:
        env.create()
        env.install("--no-deps", f"qwen-mfa=={below}")
        _require(any(ONLY_BEFORE in name for name in env.files()), "the previous lacks its file")
        env.install("--no-deps", "--upgrade", "qwen-mfa")
        _require(env.installed() == subject.version, f"got {env.installed()}")
        left = [name for name in env.files() if Path(ONLY_BEFORE).stem in name]
        _require(not left, f"of the previous version remain {left}")
        return f"{below} to {subject.version}, though {above} is there, yanked"

    def exact() -> str:
        done = env.install("--no-deps", f"qwen-mfa=={above}")
        _require(env.installed() == above, f"got {env.installed()}")
        _require("yanked" in done.text, f"no warning:\n{done.text}")
        return f"{above}, with a warning"

    report.check(f"{env.installer}: upgrade", upgrade)
    report.check(f"{env.installer}: a yanked version only when asked for exactly", exact)


def check_damage(report: Report, env: Environment, index: Index, wheel: Path) -> None:
    """Files that were exchanged after the upload are refused by hash."""
    name = wheel.name
    requirement = env.folder.parent / f"{env.folder.name}-requirements.txt"

    def in_storage() -> None:
        env.create()
        index.tampered[name] = _with_other_code(wheel)
        try:
            _refused(env, "--no-deps", "qwen-mfa")
        finally:
            del index.tampered[name]

    def by_checksum() -> None:
        requirement.write_text(
            f"qwen-mfa=={_version(wheel)} --hash=sha256:{sha256(wheel)}\n", encoding="utf-8"
        )
        env.install("--no-deps", "--require-hashes", "-r", str(requirement))
        env.uninstall()
        requirement.write_text(
            f"qwen-mfa=={_version(wheel)} --hash=sha256:{'0' * 64}\n", encoding="utf-8"
        )
        _refused(env, "--no-deps", "--require-hashes", "-r", str(requirement))

    report.check(f"{env.installer}: a file exchanged after the upload is refused", in_storage)
    report.check(f"{env.installer}: another file than SHA256SUMS names is refused", by_checksum)


def check_sdist(report: Report, env: Environment, subject: Project, *, native: str) -> None:
    """Build from the source distribution, as pip does where there is no wheel."""

    def install() -> str:
        env.create()
        env.install("--no-binary", "qwen-mfa", "qwen-mfa[cpu]")
        _require(env.installed() == subject.version, f"got {env.installed()}")
        _require(env.manifest() is not None or native.endswith("any"), "it carries no library")
        env.run("selftest", "--image-tokens", TOKENS)
        return env.tag()

    report.check(f"{env.installer}: build from the source distribution", install)


def _with_other_code(wheel: Path) -> bytes:
    """Return a sound wheel of the same name with one module more, as an attacker would make it."""
    with tempfile.TemporaryDirectory(prefix="qwen-mfa-tampered-") as folder:
        copy = Path(folder) / wheel.name
        shutil.copyfile(wheel, copy)
        with zipfile.ZipFile(copy, "a") as archive:
            archive.writestr("qwen_mfa/unwanted.py", '"""Not ours."""\n')
        canonical.rewrite_wheel(copy)
        return copy.read_bytes()


def _refused(env: Environment, *arguments: str) -> None:
    done = env.try_install(*arguments)
    _require(done.status != 0, "it was installed")
    _require(re.search("hash", done.text, re.IGNORECASE) is not None, done.text)
    _require(env.installed() is None, "something was installed all the same")


def front_end(root: Path, out: Path, what: list[str], native: str) -> Path:
    """Build one distribution as any user's front end does; return its path.

    Args:
        root: The project.
        out: Folder for the distribution, and nothing else.
        what: Options of `build`: which distribution, and whether it is isolated.
        native: The toolchain of its library.

    """
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PIP_CONSTRAINT": str(root / "requirements" / "constraints.txt"),
        "QWEN_MFA_NATIVE": native,
    }
    command = [sys.executable, "-m", "build", *what, "--outdir", str(out), str(root)]
    process.run(command, cwd=root, env=env)
    made = files.distributions(out)
    if len(made) != 1:
        msg = f"the build made {len(made)} files instead of one; log: {process.log_file()}"
        raise ReleaseError(msg)
    return made[0]


def _neighbour(subject: Project, version: str, work: Path, extra: str = "") -> Path:
    """Build the MLX-only wheel of the same sources as another version."""
    tree = work / "tree"
    shutil.copytree(subject.root, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
    path = tree / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    changed = text.replace(f'version = "{subject.version}"', f'version = "{version}"', 1)
    _require(changed != text, "pyproject.toml has no line with the version")
    path.write_text(changed, encoding="utf-8")
    if extra:
        (tree / "mfa_wheel" / "qwen_mfa" / extra).write_text('"""Gone now."""\n', encoding="utf-8")
    return front_end(tree, work / "out", ["--wheel"], "none")


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ReleaseError(text)


def _short(python: Path) -> str:
    return python.name.removeprefix("python")


def _version(wheel: Path) -> str:
    return wheel.name.split("-")[1]
