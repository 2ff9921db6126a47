"""What is a release, and what is refused. The wheels are doctored stand-ins: see `release`."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from build_tools.__main__ import main
from build_tools.audit import libraries
from build_tools.release import assemble, changelog, files
from build_tools.support.errors import ReleaseError
from build_tools.wheel import canonical, sbom
from build_tools.wheel.archives import Entry, read
from build_tools.wheel.manifest import MANIFEST, NATIVE
from tests.build_tools.audit.makers import ZIG_EXPORTS
from tests.build_tools.rehearsal import standin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from build_tools.release.project import Project

Edit = dict[str, bytes]


def _rewrite(path: Path, target: Path, change: Callable[[Edit], None]) -> None:
    """Write the wheel at ``path`` as ``target``, changed, in canonical form."""
    entries = read(path).entries
    contents = {name: entry.content for name, entry in entries.items()}
    change(contents)
    made = {
        name: replace(entries.get(name, Entry(content=b"")), content=content)
        for name, content in contents.items()
    }
    target.write_bytes(canonical.pack_wheel(made, canonical.ZIP_EPOCH))
    canonical.rewrite_wheel(target)


def _pass_off(contents: Edit) -> None:
    """Make a stand-in say that it is real, which no build does: tests need a set that passes."""
    told = json.loads(contents[MANIFEST])
    told["engine"] = "metal" if "macosx" in told["platform_tag"] else "portable"
    contents[MANIFEST] = (json.dumps(told, indent=2) + "\n").encode()
    (about,) = [name for name in contents if name.endswith(".dist-info/WHEEL")]
    contents[about] = contents[about].replace(f"Build: {standin.BUILD_TAG}\n".encode(), b"")
    (bom,) = [name for name in contents if "/sboms/" in name]
    contents[bom] = sbom.render(told, folder=NATIVE).encode()


@pytest.fixture(autouse=True)
def zig_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    """zig's linker exports two symbols of its own from macOS libraries; Apple's does not."""
    monkeypatch.setattr(libraries, "ABI", (*libraries.ABI, *ZIG_EXPORTS))


@pytest.fixture
def release(dist: Path, tmp_path: Path) -> Path:
    """A complete set of files, of which only the MLX-only wheel and the sdist are real."""
    out = tmp_path / "built"
    out.mkdir()
    for path in files.distributions(dist):
        if standin.BUILD_TAG in path.name:
            _rewrite(path, out / path.name.replace(f"-{standin.BUILD_TAG}", ""), _pass_off)
        else:
            shutil.copy2(path, out)
    return out


def _one(folder: Path, part: str) -> Path:
    (found,) = [path for path in folder.iterdir() if part in path.name]
    return found


def _problems(folder: Path, subject: Project) -> str:
    return "\n".join(files.problems(folder, subject))


def test_a_whole_release(release: Path, subject: Project) -> None:
    assert files.problems(release, subject) == []


def test_stand_ins_are_refused(dist: Path, subject: Project) -> None:
    told = _problems(dist, subject)
    standins = [path.name for path in dist.iterdir() if standin.BUILD_TAG in path.name]
    assert len(standins) == 3
    for name in standins:
        assert f"{name}: not a file of release" in told
        assert f"{name}: its engine is stand-in, it has to be none that is ever published" in told


@pytest.mark.parametrize("part", ["macosx", "x86_64", "aarch64", "-any", ".tar.gz"])
def test_each_file_is_needed(release: Path, subject: Project, part: str) -> None:
    _one(release, part).unlink()
    (told,) = files.problems(release, subject)
    assert "none of it instead of one" in told


def test_superfluous_files(release: Path, subject: Project) -> None:
    (release / "notes.txt").write_text("", encoding="utf-8")
    assert files.problems(release, subject) == [
        f"notes.txt: not a file of release {subject.version}"
    ]


def test_two_of_one_kind(release: Path, subject: Project) -> None:
    path = _one(release, "x86_64")
    other = release / path.name.replace("2_17", "2_28")
    shutil.copy2(path, other)
    assert "2 of it instead of one" in _problems(release, subject)


FFI = "qwen_mfa/native/ffi.py"


def _set(name: str, content: bytes) -> Callable[[Edit], None]:
    return lambda contents: contents.update({name: content})


def _manifest(**changes: object) -> Callable[[Edit], None]:
    def change(contents: Edit) -> None:
        told = {**json.loads(contents[MANIFEST]), **changes}
        contents[MANIFEST] = json.dumps(told).encode()

    return change


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("-any", _set("qwen_mfa/more.py", b"1\n"), "holds qwen_mfa/more.py, which the working"),
        ("-any", _set(FFI, b"1\n"), f"{FFI} is not the working tree's"),
        ("-any", lambda c: c.pop(FFI) and None, f"lacks {FFI}"),
        ("-any", lambda c: c.pop("qwen_mfa/py.typed") and None, "audit: file-missing"),
        ("macosx", _manifest(engine="portable"), "its engine is portable, it has to be metal"),
        ("x86_64", _manifest(engine="metal"), "its engine is metal, it has to be portable"),
        ("aarch64", _manifest(package={"version": "9.9"}), "its manifest is of version 9.9"),
        ("aarch64", _manifest(build_fingerprint="0"), "built by other build tools"),
        ("aarch64", _manifest(sources={"swift_pkg/Package.swift": "0"}), "built from another"),
    ],
    ids=[
        "superfluous module", "changed module", "missing module", "audit", "macOS without Metal",
        "Linux with Metal", "version", "fingerprint", "sources",
    ],
)  # fmt: skip
def test_wheels_that_are_not_of_this_commit(
    release: Path, subject: Project, part: str, change: Callable[[Edit], None], words: str
) -> None:
    path = _one(release, part)
    _rewrite(path, path, change)
    assert words in _problems(release, subject)


def test_a_damaged_wheel(release: Path, subject: Project) -> None:
    path = _one(release, "-any")
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{path.name} cannot be read" in _problems(release, subject)


def test_an_sdist_of_another_commit(release: Path, subject: Project) -> None:
    path = _one(release, ".tar.gz")
    data = io.BytesIO()
    with (
        tarfile.open(path, "r:gz") as source,
        tarfile.open(fileobj=data, mode="w") as target,
    ):
        for member in source:
            stream = source.extractfile(member)
            content = stream.read() if stream else b""
            if member.name.endswith("/setup.py"):
                content += b"# changed\n"
                member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    path.write_bytes(gzip.compress(data.getvalue()))
    assert f"{path.name}: setup.py is not the working tree's" in files.problems(release, subject)


@pytest.fixture
def noted(release: Path, subject: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The release, and a CHANGELOG that has its version."""
    monkeypatch.setattr(changelog, "notes", lambda _path, version: f"Notes of {version}.")
    return release


def test_assembling(noted: Path, subject: Project, tmp_path: Path) -> None:
    out = tmp_path / "release"
    assert main(["release-assemble", str(noted), "--tag", subject.tag, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"dist", "sboms", "SHA256SUMS", "NOTES.md"}
    subprocess.run(
        ["sha256sum", "--check", "--strict", "../SHA256SUMS"], cwd=out / "dist", check=True
    )
    names = {path.name for path in (out / "dist").iterdir()}
    assert names == {path.name for path in noted.iterdir()}
    with_library = [name for name in names if name.endswith(".whl") and "-any" not in name]
    assert len(with_library) == 3
    sboms = {path.name for path in (out / "sboms").iterdir()}
    assert sboms == {f"{name}.cdx.json" for name in with_library}
    notes = (out / "NOTES.md").read_text(encoding="utf-8")
    assert notes.startswith(f"Notes of {subject.version}.")
    assert all(name in notes for name in names)
    assert "No GPU ran this release" in notes


def test_nothing_is_left_of_a_refused_release(
    noted: Path, subject: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _one(noted, "macosx").unlink()
    out = tmp_path / "out" / "release"
    assert main(["release-assemble", str(noted), "--tag", subject.tag, "--out", str(out)]) == 1
    assert "macosx_15_0_arm64.whl: none of it instead of one" in capsys.readouterr().err
    assert not out.parent.exists()


def test_another_tag(noted: Path, subject: Project, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"the tag is v9\.9"):
        assemble.require_tag("v9.9", subject)
    assert (
        main(["release-assemble", str(noted), "--tag", "v9.9", "--out", str(tmp_path / "o")]) == 1
    )
    assert not (tmp_path / "o").exists()


def test_an_existing_folder_is_kept(noted: Path, subject: Project, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    with pytest.raises(ReleaseError, match="exists"):
        assemble.assemble(noted, tmp_path / "o", subject)
