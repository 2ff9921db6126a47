"""Shader packs, from recorded sources to what a wheel embeds. The Metal compiler is a stand-in."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from build_tools.__main__ import main
from build_tools.audit.auditor import audit
from build_tools.commands.shaders import OPTIONS, write
from build_tools.native import kernels, shader_compiler, shaders
from build_tools.source import lock as locks
from build_tools.support import files
from build_tools.support.errors import ShaderError, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable

XCRUN = str(Path(__file__).parents[2] / "standins" / "xcrun" / "xcrun")
COMMITS = {"upstream": "1" * 40, "submodule": "2" * 40}


def found(*, options: str = OPTIONS) -> list[kernels.Found]:
    """Make up what upstream's generator gives: two purposes, both variants."""
    result = []
    for family in (8, 9):
        for variant in ("upstream", "plain"):
            word = '__asm("air.copy")' if variant == "upstream" else "lanes"
            text = f"kernel void attention_{family}() {{ {word}; }}\n"
            case = kernels.Case(family=family, input="bf16", intermediate="fp32", variant=variant)
            item = kernels.Generated(case=case, key=shaders.key_of(options, text), source=text)
            result.append(kernels.Found(item=item, lengths=(1024, 4096)))
    return result


@pytest.fixture
def record(tmp_path: Path) -> shaders.Record:
    return write(tmp_path / "record", COMMITS, found())


@pytest.fixture
def pack(record: shaders.Record, tmp_path: Path) -> Path:
    left_out = shader_compiler.pack(record, tmp_path / "pack", xcrun=XCRUN)
    assert left_out == []
    return tmp_path / "pack"


def change(pack: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((pack / shaders.INDEX).read_text())
    alter(index)
    (pack / shaders.INDEX).write_text(json.dumps(index))


def entry(index: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = next(iter(index["libraries"].values()))
    return first


def test_a_record_reads_back(record: shaders.Record, tmp_path: Path) -> None:
    again = shaders.load_record(record.folder)
    assert again == record
    assert len(again.sources) == 4
    assert again.options == OPTIONS
    assert dict(again.commits) == COMMITS
    with pytest.raises(ShaderError, match="exists"):
        write(record.folder, COMMITS, found())
    assert {p.name for p in tmp_path.iterdir()} == {"record"}


def test_other_compile_options_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(ShaderError, match="compile options have changed"):
        write(tmp_path / "record", COMMITS, found(options="defaults"))
    assert not list(tmp_path.iterdir())


def test_a_damaged_source_is_noticed(record: shaders.Record) -> None:
    path = record.folder / f"{record.sources[0].key}.metal"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ShaderError, match="not the source that its name says"):
        shaders.load_record(record.folder)


@pytest.mark.parametrize("content", ["", "{}", '{"format": 9}', '{"format": 1, "sources": 3}'])
def test_a_damaged_record_is_noticed(record: shaders.Record, content: str) -> None:
    (record.folder / shaders.RECORD).write_text(content)
    with pytest.raises(ShaderError, match=r"record|format"):
        shaders.load_record(record.folder)


def test_a_pack_is_what_the_library_reads(pack: Path, record: shaders.Record) -> None:
    index = shaders.load_pack(pack)
    assert index["format"] == 1
    assert set(index["libraries"]) == {source.key for source in record.sources}
    for key, item in index["libraries"].items():
        assert set(item) == {"file", "sha256", "variant", "compiler", "minimum_os"}
        assert item["file"] == f"{key}.metallib"
        assert item["compiler"] == "Apple metal version 32023.620 (stand-in)"
        assert item["minimum_os"] == "15.0"
    assert index["source"]["commits"] == COMMITS
    assert index["source"]["options"] == OPTIONS


def test_the_same_record_gives_the_same_pack(
    pack: Path, record: shaders.Record, tmp_path: Path
) -> None:
    shader_compiler.pack(record, tmp_path / "again", xcrun=XCRUN)
    first, second = (
        {p.name: p.read_bytes() for p in folder.iterdir()} for folder in (pack, tmp_path / "again")
    )
    assert first == second


def test_what_the_compiler_rejects_is_left_out(
    record: shaders.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_REJECTS_ASM", "1")
    left_out = shader_compiler.pack(record, tmp_path / "pack", xcrun=XCRUN)
    assert len(left_out) == 2
    assert all("upstream" in text and "illegal string literal" in text for text in left_out)
    libraries = shaders.load_pack(tmp_path / "pack")["libraries"]
    assert {item["variant"] for item in libraries.values()} == {"plain"}
    assert shaders.uncovered(libraries, record.sources) == []


def test_nothing_is_left_when_neither_variant_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_REJECTS_ASM", "1")
    only = [each for each in found() if each.item.case.variant == "upstream"]
    record = write(tmp_path / "record", COMMITS, only)
    with pytest.raises(ShaderError, match="no variant compiles for Apple8 bf16/fp32"):
        shader_compiler.pack(record, tmp_path / "pack", xcrun=XCRUN)
    assert {p.name for p in tmp_path.iterdir()} == {"record", "test.log"}


@pytest.mark.parametrize("how", ["no toolchain", "no xcrun"])
def test_no_compiler(
    record: shaders.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("STANDIN_NO_METAL", "1")
    xcrun = XCRUN if how == "no toolchain" else str(tmp_path / "nothing")
    with pytest.raises(ToolError, match="downloadComponent MetalToolchain"):
        shader_compiler.pack(record, tmp_path / "pack", xcrun=xcrun)
    assert not (tmp_path / "pack").exists()


def try_(record: shaders.Record, log: Path, *more: str) -> int:
    command = ["shaders", "try", str(record.folder), "--xcrun", XCRUN, "--log", str(log)]
    return main([*command, *more])


def test_trying_says_what_each_compiler_accepts(
    record: shaders.Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert try_(record, tmp_path / "log") == 0
    told = capsys.readouterr().out
    assert told.count(": compiles") == 4
    assert "Apple metal version 32023.620 (stand-in)" in told
    # Upstream's form may be rejected: that is what the plain one is for.
    monkeypatch.setenv("STANDIN_REJECTS_ASM", "1")
    assert try_(record, tmp_path / "log") == 0
    told = capsys.readouterr().out
    assert told.count(": compiles") == 2
    assert told.count("upstream: shader.metal:1:1: error: illegal string literal") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"record", "log"}


def test_a_plain_variant_that_does_not_compile_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "kernel void attention() { REJECTED; }"
    case = kernels.Case(family=9, input="bf16", intermediate="fp32", variant="plain")
    item = kernels.Generated(case=case, key=shaders.key_of(OPTIONS, text), source=text)
    record = write(tmp_path / "record", COMMITS, [kernels.Found(item=item, lengths=(1024,))])
    assert try_(record, tmp_path / "log") == 1
    assert "plain variants that do not compile" in capsys.readouterr().err


class Device:
    """STAND-IN for an MTLDevice that compiles as the stand-in ``xcrun`` does."""

    def __init__(self, rejected: str) -> None:
        self.rejected = rejected
        self.asked: list[tuple[int, int, int]] = []

    def name(self) -> str:
        return "Apple Paravirtual device"

    def newLibraryWithSource_options_error_(  # noqa: N802 - PyObjC's name
        self, text: str, options: Options, error: None
    ) -> tuple[object, object]:
        self.asked.append((options.language, options.math, options.functions))
        if self.rejected in text:
            return None, SimpleNamespace(localizedDescription=lambda: "program_source:1: error")
        return object(), None


class Options:
    """STAND-IN for MTLCompileOptions: what was set."""

    language = math = functions = -1

    @classmethod
    def alloc(cls) -> Options:
        return cls()

    def init(self) -> Options:
        return self

    def setLanguageVersion_(self, value: int) -> None:  # noqa: N802
        self.language = value

    def setMathMode_(self, value: int) -> None:  # noqa: N802
        self.math = value

    def setMathFloatingPointFunctions_(self, value: int) -> None:  # noqa: N802
        self.functions = value


@pytest.mark.parametrize(
    ("rejected", "status", "accepted"), [("nothing", 0, 8), ("__asm", 0, 6), ("lanes", 1, 6)]
)
def test_trying_in_the_process_too(
    record: shaders.Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rejected: str,
    status: int,
    accepted: int,
) -> None:
    device = Device(rejected)
    metal = SimpleNamespace(MTLCompileOptions=Options, MTLCreateSystemDefaultDevice=lambda: device)
    monkeypatch.setitem(sys.modules, "Metal", metal)
    assert try_(record, tmp_path / "log", "--in-process") == status
    told = capsys.readouterr()
    assert told.out.count(": compiles") == accepted
    assert "in process, Apple Paravirtual device" in told.out
    # Metal 3.2, relaxed, fast functions: what the key of each source says.
    assert device.asked == [((3 << 16) + 2, 1, 0)] * 4
    monkeypatch.setattr(metal, "MTLCreateSystemDefaultDevice", lambda: None)
    assert try_(record, tmp_path / "log", "--in-process") == 0
    assert "no Metal device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (OPTIONS, ["-mmacosx-version-min=15.0", "-std=metal3.2", "-fmetal-math-mode=relaxed",
                   "-fmetal-math-fp32-functions=fast"]),
        (
            OPTIONS.replace("3.2", "4.0").replace("math=relaxed", "math=safe")
            .replace("default", "size").replace("=no", "=yes") + "A=1,B=2",
            ["-mmacosx-version-min=15.0", "-std=metal4.0", "-fmetal-math-mode=safe",
             "-fmetal-math-fp32-functions=fast", "-Os", "-fpreserve-invariance", "-DA=1", "-DB=2"],
        ),
    ],
)  # fmt: skip
def test_flags_say_what_the_options_say(options: str, flags: list[str]) -> None:
    assert shader_compiler.flags(options) == flags


@pytest.mark.parametrize("options", ["defaults", "", OPTIONS.replace("fast", "odd")])
def test_unknown_options(options: str) -> None:
    with pytest.raises(ShaderError, match="not understood"):
        shader_compiler.flags(options)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "format": (lambda i: i.update(format=2), "not of format 1"),
    "empty": (lambda i: i.update(libraries={}), "names no libraries"),
    "no table": (lambda i: i["libraries"].update(a=3), "not a table"),
    "key": (lambda i: i["libraries"].update(XY=entry(i)), "not a SHA-256"),
    "climbing": (lambda i: entry(i).update(file="../x.metallib"), "not a plain name"),
    "hidden": (lambda i: entry(i).update(file=".x.metallib"), "not a plain name"),
    "list": (lambda i: entry(i).update(file=[]), "not a plain name"),
    "missing": (lambda i: entry(i).update(file="x.metallib"), "x.metallib is missing"),
    "hash": (lambda i: entry(i).update(sha256="0" * 64), "another SHA-256"),
    "variant": (lambda i: entry(i).update(variant="other"), "variant 'other'"),
    "compiler": (lambda i: entry(i).pop("compiler"), "what compiled it"),
    "too new": (lambda i: entry(i).update(minimum_os="26.0"), "needs macOS 26.0"),
    "system": (lambda i: entry(i).update(minimum_os="new"), "not like 15.0"),
    "extra": (lambda i: i["libraries"].pop(next(iter(i["libraries"]))), "is in no entry"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damage_is_noticed_in_a_folder_and_in_a_wheel(
    pack: Path, tmp_path: Path, name: str
) -> None:
    alter, part = DAMAGE[name]
    wheel = tmp_path / "qwen_mfa-1.0-py3-none-any.whl"
    assert pack_findings(pack, wheel) == []
    change(pack, alter)
    with pytest.raises(ShaderError, match=part):
        shaders.load_pack(pack)
    assert any(part in text for text in pack_findings(pack, wheel))


def pack_findings(pack: Path, wheel: Path) -> list[str]:
    """Audit a wheel with ``pack`` in it and return what is said about the pack."""
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in pack.iterdir():
            archive.write(path, f"qwen_mfa/_native/shaders/{path.name}")
    return [each.what for each in audit(wheel).findings if each.code == "shader-pack"]


def test_a_file_that_is_no_library(pack: Path) -> None:
    name = next(pack.glob("*.metallib")).name
    (pack / name).write_bytes(b"text")
    digest = files.sha256(pack / name)
    change(pack, lambda i: i["libraries"][name.split(".")[0]].update(sha256=digest))
    with pytest.raises(ShaderError, match="is not a metallib"):
        shaders.load_pack(pack)


def test_coverage(pack: Path, record: shaders.Record, tmp_path: Path) -> None:
    report = tmp_path / "report.json"

    def verify(*keys: str) -> int:
        origins = [{"key": key} for key in keys]
        report.write_text(json.dumps({"sections": {"validation": {"origins": origins}}}))
        command = ["shaders", "verify", str(pack), "--record", str(record.folder)]
        return main([*command, "--report", str(report)])

    assert verify(record.sources[0].key) == 0
    assert verify(record.sources[0].key, "f" * 64) == 1
    report.write_text("{}")
    assert main(["shaders", "verify", str(pack), "--report", str(report)]) == 1


def test_commands(record: shaders.Record, tmp_path: Path) -> None:
    target = tmp_path / "made"
    command = ["shaders", "pack", str(record.folder), str(target), "--xcrun", XCRUN]
    assert main([*command, "--log", str(tmp_path / "log")]) == 0
    assert main(["shaders", "verify", str(target), "--record", str(record.folder)]) == 0
    assert main([*command, "--log", str(tmp_path / "log")]) == 1, "the folder exists"


def test_what_the_lock_names_is_embedded(pack: Path, tmp_path: Path) -> None:
    digest = files.sha256(pack / shaders.INDEX)
    shaders.embed(((pack, digest),), tmp_path / "shaders")
    embedded = shaders.load_pack(tmp_path / "shaders")["libraries"]
    assert embedded == shaders.load_pack(pack)["libraries"]
    with pytest.raises(ShaderError, match="not the pack that the lock names"):
        shaders.embed(((pack, "0" * 64),), tmp_path / "other")


def test_two_packs_are_joined_unless_they_disagree(
    pack: Path, record: shaders.Record, tmp_path: Path
) -> None:
    parts = []
    for family in (8, 9):
        some = [each for each in found() if each.item.case.family == family]
        part = write(tmp_path / f"record{family}", COMMITS, some)
        folder = tmp_path / f"pack{family}"
        shader_compiler.pack(part, folder, xcrun=XCRUN)
        parts.append((folder, files.sha256(folder / shaders.INDEX)))
    shaders.embed(tuple(parts), tmp_path / "joined")
    joined = shaders.load_pack(tmp_path / "joined")["libraries"]
    assert set(joined) == {source.key for source in record.sources}
    name = next((tmp_path / "pack8").glob("*.metallib"))
    name.write_bytes(name.read_bytes() + b"!")
    other = files.sha256(name)
    change(tmp_path / "pack8", lambda i: i["libraries"][name.stem].update(sha256=other))
    parts[0] = (tmp_path / "pack8", files.sha256(tmp_path / "pack8" / shaders.INDEX))
    both = (*parts, (pack, files.sha256(pack / shaders.INDEX)))
    with pytest.raises(ShaderError, match="different libraries for"):
        shaders.embed(both, tmp_path / "clash")


def test_the_lock_may_name_packs() -> None:
    text = locks.DEFAULT.read_text(encoding="utf-8")
    assert locks.parse(text).shader_packs == ()
    more = f'{text}\n[[shader_packs]]\npath = "shaders/1"\nsha256 = "{"a" * 64}"\n'
    (named,) = locks.parse(more).shader_packs
    assert (named.path, named.sha256) == ("shaders/1", "a" * 64)
