"""The real thing: two builds with nothing in common, and a wheel verified from its manifest."""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from build_tools.__main__ import main
from build_tools.reproduce import build, rebuild
from build_tools.reproduce.build import PLAIN, STRANGE, Circumstances, ReproduceError
from build_tools.reproduce.rebuild import Claim, find_commit, read_claim
from build_tools.support.process import capture
from build_tools.wheel import fingerprint
from build_tools.wheel.archives import Entry, UnreadableError, read
from build_tools.wheel.canonical import pack_wheel, rewrite_wheel
from tests.build_tools.audit.makers import INFO, MadeWheel

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_in_common() -> None:
    for field in ("folder", "front_end", "umask", "cpus", "clock", "old_files"):
        assert getattr(PLAIN, field) != getattr(STRANGE, field), field
    assert PLAIN.variables.keys() == STRANGE.variables.keys()
    for name, value in PLAIN.variables.items():
        assert STRANGE.variables[name] != value, name


@pytest.mark.slow
def test_identical_bytes(reproduced: Path) -> None:
    (first,) = (reproduced / "out-alice").glob("*.whl")
    (second,) = (reproduced / "out-bob").glob("*.whl")
    assert first.read_bytes() == second.read_bytes()
    assert first.name == second.name
    # The circumstances were real: the second tree is dated 2001, its files are for one user only.
    tree = reproduced / STRANGE.folder
    assert (tree / "setup.py").stat().st_mtime == build.OLD
    assert second.stat().st_mode & 0o777 == 0o644, "whatever the umask"
    assert list((reproduced / "out-bob").glob("*.tar.gz")), "by way of a source distribution"


@pytest.mark.slow
def test_verify_finds_the_flipped_bit(
    reproduced: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (wheel,) = (reproduced / "out-alice").glob("*.whl")
    # The rebuild itself is tested below; here the one that was made above saves a minute.
    monkeypatch.setattr("build_tools.commands.verify.build", lambda *_, **__: wheel)
    forged = tmp_path / wheel.name
    entries = read(wheel).entries
    (name,) = [each for each in entries if each.endswith(".so")]
    data = bytearray(entries[name].content)
    data[len(data) // 2] ^= 1
    entries[name] = Entry(content=bytes(data), executable=True)
    forged.write_bytes(pack_wheel(entries, 0x4000_0000))
    rewrite_wheel(forged)
    assert main(["verify", str(forged)]) == 1
    out = capsys.readouterr().out
    assert "NOT reproduced" in out
    assert "libMFAFFI.so: section " in out
    assert "1 of " in out


@pytest.mark.slow
def test_verify_agrees(
    reproduced: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheel,) = (reproduced / "out-bob").glob("*.whl")
    asked: dict[str, object] = {}

    def rebuild(_work: Path, how: Circumstances, **wanted: object) -> Path:
        # It was built so above, by the same function: what matters here is what is asked for.
        asked.update(wanted, how=how)
        (other,) = (reproduced / "out-alice").glob("*.whl")
        return other

    monkeypatch.setattr("build_tools.commands.verify.build", rebuild)
    assert main(["verify", "--no-isolation", str(wheel)]) == 0
    assert "verified: the rebuilt wheel has the same bytes" in capsys.readouterr().out
    # The newest commit with the wheel's sources: the clones' own.
    head = capture(["git", "rev-parse", "HEAD"], cwd=reproduced / PLAIN.folder)
    assert asked == {"how": PLAIN, "toolchain": "cc", "commit": head, "isolated": False}


# ---------------------------------------------------------------- claims and commits


def claimed(manifest: object) -> MadeWheel:
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return MadeWheel(files={"qwen_mfa/_native/manifest.json": text})


def test_a_claim(tmp_path: Path) -> None:
    manifest = {
        "built_by": "cc",
        "compiler": "gcc 99",
        "engine": "portable",
        "overlay": {"swift_pkg/o.swift": "o"},
        "build_fingerprint": "r",
        "sources": {"swift_pkg/a.c": "s"},
    }
    claim = read_claim(claimed(manifest).write(tmp_path))
    modules = {
        f"mfa_wheel/{name}": hashlib.sha256(entry.content).hexdigest()
        for name, entry in MadeWheel().entries().items()
        if name.startswith("qwen_mfa/")
    }
    assert claim == Claim(
        sources={
            **modules,
            "swift_pkg/a.c": "s",
            "swift_pkg/o.swift": "o",
        },
        toolchain="cc",
        compiler="gcc 99",
        engine="portable",
        fingerprint="r",
    )


@pytest.mark.parametrize(
    "manifest",
    [b"{", b"\xff", [], {"built_by": "magic"}, {"built_by": "cc", "sources": 3}, {"x": 1}],
)
def test_bad_manifests(manifest: object, tmp_path: Path) -> None:
    with pytest.raises(ReproduceError, match="no manifest of this project that can be read"):
        read_claim(claimed(manifest).write(tmp_path))


def test_other_wheels(tmp_path: Path) -> None:
    with pytest.raises(ReproduceError, match="does not hold qwen_mfa"):
        read_claim(
            MadeWheel(files={n: None for n in MadeWheel().entries() if n[8] == "/"}).write(tmp_path)
        )
    true = MadeWheel().entries()[f"{INFO}/RECORD"].content
    lying = MadeWheel(record=true.replace(b"sha256=", b"sha256=A", 1))
    with pytest.raises(ReproduceError, match="Get the wheel again"):
        read_claim(lying.write(tmp_path))
    (tmp_path / "text.whl").write_text("text", encoding="utf-8")
    with pytest.raises(UnreadableError):
        read_claim(tmp_path / "text.whl")


def test_the_metal_engine_needs_a_mac(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    manifest = {"built_by": "swift build -c release", "engine": "metal", "sources": {}}
    assert main(["verify", str(claimed(manifest).write(tmp_path))]) == 1
    assert "which only a Mac can rebuild" in capsys.readouterr().err


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make a repository of three commits and return their names, oldest first."""
    root = tmp_path / "repository"
    (root / "build_tools" / "wheel").mkdir(parents=True)
    monkeypatch.setattr(rebuild, "ROOT", root)

    def git(*words: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(
            ["git", *identity, *words], cwd=root, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    commits = []
    for source, tools in (("one", "1"), ("two", "1"), ("two", "2")):
        (root / "a.c").write_text(source, encoding="utf-8")
        (root / "build_tools" / "wheel" / "x.py").write_text(tools, encoding="utf-8")
        for name in fingerprint.FILES:
            (root / name).write_text("", encoding="utf-8")
        git("add", "-A")
        git("commit", "--quiet", "-m", "m")
        commits.append(git("rev-parse", "HEAD"))
    return commits


def claim_of(source: str, digest: str = "") -> Claim:
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    return Claim(
        sources={"a.c": sha256}, toolchain="cc", compiler="", engine="portable", fingerprint=digest
    )


@pytest.mark.parametrize(
    ("path", "text", "shapes"),
    [
        ("build_tools/wheel/canonical.py", "", True),
        ("build_tools/native/shader_sources.json", "{}", True),
        ("build_tools/release/readiness.py", "", False),
        ("build_tools/audit/auditor.py", "", False),
        ("build_tools/commands/wheel.py", "", False),
        ("pyproject.toml", "[tool.ruff]\nline-length = 99\n", False),
        ("pyproject.toml", "[project]\nname = 'other'\n", True),
        ("pyproject.toml", "[tool.setuptools]\nzip-safe = false\n", True),
        ("setup.py", "x = 1", True),
    ],
)
def test_only_what_shapes_the_wheel_is_in_its_fingerprint(
    path: str, text: str, shapes: bool, tmp_path: Path
) -> None:
    for name in fingerprint.FILES:
        (tmp_path / name).write_text("", encoding="utf-8")
    before = fingerprint.read(tmp_path)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text, encoding="utf-8")
    assert (fingerprint.read(tmp_path) != before) == shapes


def test_the_commit_is_found(history: list[str]) -> None:
    assert find_commit(claim_of("one")) == history[0]
    assert find_commit(claim_of("two")) == history[2], "the newest that fits"
    root: Path = vars(rebuild)["ROOT"]  # what the fixture put there
    now = fingerprint.read(root)
    assert find_commit(claim_of("two", now)) == history[2]
    (root / "build_tools" / "wheel" / "x.py").write_text("1", encoding="utf-8")
    assert find_commit(claim_of("two", fingerprint.read(root))) == history[1], "by its build tools"


def test_the_nearest_commit_is_named(history: list[str]) -> None:
    with pytest.raises(ReproduceError, match=rf"nearest, {history[2][:12]}, differs in 1: a\.c"):
        find_commit(claim_of("three"))
    with pytest.raises(ReproduceError, match="build_tools/ and its pins"):
        find_commit(claim_of("two", "unknown"))
