"""The wheel as a file, and through every front end."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from build_tools.native import portable
from build_tools.wheel import sbom

# One name a line, so that two changes merge.
PACKAGE_FILES = {
    "__init__.py",
    "__main__.py",
    "attention.py",
    "backend.py",
    "cli/__init__.py",
    "cli/advice.py",
    "cli/arguments.py",
    "cli/bench/__init__.py",
    "cli/bench/attention.py",
    "cli/bench/common.py",
    "cli/bench/contestants.py",
    "cli/bench/dispatch.py",
    "cli/bench/footprint.py",
    "cli/bench/freed.py",
    "cli/bench/padding.py",
    "cli/bench/peers.py",
    "cli/bench/pipeline.py",
    "cli/bench/plot.py",
    "cli/bench/records.py",
    "cli/bench/rounds.py",
    "cli/bench/shapes.py",
    "cli/bench/show.py",
    "cli/bench/step.py",
    "cli/device.py",
    "cli/doctor.py",
    "cli/doctor_without_mlx.py",
    "cli/explain.py",
    "cli/info.py",
    "cli/metal_sections.py",
    "cli/mflux_command.py",
    "cli/precision.py",
    "cli/run.py",
    "cli/sample.py",
    "cli/selftest.py",
    "cli/selftest_metal.py",
    "cli/table.py",
    "errors.py",
    "exits.py",
    "files.py",
    "firstuse.py",
    "forks.py",
    "integrations/__init__.py",
    "integrations/distributed/__init__.py",
    "integrations/distributed/agreement.py",
    "integrations/distributed/group.py",
    "integrations/distributed/guidance.py",
    "integrations/distributed/heads.py",
    "integrations/distributed/watchdog.py",
    "integrations/imports.py",
    "integrations/mflux/__init__.py",
    "integrations/mflux/blocks.py",
    "integrations/mflux/cut.py",
    "integrations/mflux/freeing.py",
    "integrations/mflux/guard.py",
    "integrations/mflux/integration.py",
    "integrations/mflux/kinds.py",
    "integrations/mflux/mask.py",
    "integrations/mflux/modulation.py",
    "integrations/mflux/modules.py",
    "integrations/mflux/options.py",
    "integrations/mflux/passes.py",
    "integrations/mflux/qwen_step.py",
    "integrations/mflux/records.py",
    "integrations/mflux/skeleton.py",
    "integrations/mflux/steps.py",
    "integrations/mflux/together.py",
    "integrations/mflux/tracing.py",
    "integrations/mflux/trial.py",
    "integrations/patching.py",
    "integrations/usage.py",
    "kernels/__init__.py",
    "kernels/base.py",
    "kernels/cpu.py",
    "kernels/metal/__init__.py",
    "kernels/metal/device.py",
    "kernels/metal/dlpack.py",
    "kernels/metal/execute.py",
    "kernels/metal/limits.py",
    "kernels/metal/masks.py",
    "kernels/metal/shaders.py",
    "kernels/metal/system.py",
    "kernels/mlx.py",
    "kernels/mlx_fp16.py",
    "kernels/registry.py",
    "machine.py",
    "native/__init__.py",
    "native/abi.cdef",
    "native/buffers.py",
    "native/ffi.py",
    "native/library.py",
    "native/preflight.py",
    "once.py",
    "problem.py",
    "py.typed",
    "qwen_image/__init__.py",
    "qwen_image/attention.py",
    "qwen_image/block.py",
    "qwen_image/rope.py",
    "qwen_image/weights.py",
    "selection/__init__.py",
    "selection/attempts.py",
    "selection/candidates.py",
    "selection/choose.py",
    "selection/decisions.py",
    "selection/environment.py",
    "selection/override.py",
    "selection/records.py",
    "selection/removal.py",
    "selection/session.py",
    "selection/store.py",
    "settings.py",
    "tally.py",
    "telemetry.py",
    "transforms/__init__.py",
    "transforms/autodiff.py",
    "transforms/masks.py",
    "transforms/padding.py",
    "tuning/__init__.py",
    "tuning/measure.py",
    "tuning/removal.py",
    "validation/__init__.py",
    "validation/child.py",
    "validation/inputs.py",
    "validation/inside.py",
    "validation/reference.py",
    "validation/validate.py",
    "validation/variants.py",
}
LIBRARY_FILES = {f"_native/{portable.LIBRARY}", "_native/manifest.json"}
INFO_FILES = {
    "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", f"sboms/{sbom.NAME}",
    "top_level.txt",
}  # fmt: skip


@pytest.fixture(scope="session")
def wheel(installable: Path) -> Path:
    return installable


def read(wheel: Path, suffix: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(suffix)]
        return archive.read(name).decode()


def test_exact_contents(wheel: Path) -> None:
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    expected = {f"qwen_mfa/{name}" for name in PACKAGE_FILES | LIBRARY_FILES}
    expected |= {f"{info}/{name}" for name in INFO_FILES}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected


def test_tag_and_metadata(wheel: Path) -> None:
    text = read(wheel, ".dist-info/WHEEL")
    assert "Root-Is-Purelib: false" in text
    tags = re.findall(r"^Tag: (.*)$", text, re.MULTILINE)
    assert tags == ["-".join(wheel.stem.split("-")[2:])]
    assert tags[0].startswith("py3-none-")
    assert not tags[0].endswith("any")
    metadata = read(wheel, ".dist-info/METADATA")
    assert "Requires-Python: >=3.10" in metadata
    assert {"cpu", "cuda12", "cuda13"} <= set(re.findall(r"Provides-Extra: (\w+)", metadata))
    plain = [x for x in metadata.splitlines() if x.startswith("Requires-Dist") and "extra" not in x]
    assert not any("[" in line for line in plain), "no MLX backend may be forced on anyone"
    assert read(wheel, "top_level.txt").split() == ["qwen_mfa"]


def test_record_is_complete_and_true(wheel: Path) -> None:
    rows = {row[0]: row for row in csv.reader(io.StringIO(read(wheel, ".dist-info/RECORD")))}
    with zipfile.ZipFile(wheel) as archive:
        assert set(rows) == set(archive.namelist())
        for name, digest, size in rows.values():
            if not name.endswith("/RECORD"):
                data = archive.read(name)
                want = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
                assert digest == f"sha256={want.decode()}"
                assert int(size) == len(data)


def test_manifest_tells_the_truth(wheel: Path, root: Path) -> None:
    manifest = json.loads(read(wheel, "manifest.json"))
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(f"qwen_mfa/_native/{manifest['library']['file']}")
    assert manifest["library"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["library"]["size"] == len(data)
    assert manifest["platform_tag"] == wheel.stem.split("-")[-1]
    assert manifest["compiler"]
    assert manifest["flags"]
    for name, digest in manifest["sources"].items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest
    assert any(name.endswith(".c") for name in manifest["sources"])


@pytest.mark.skipif(not shutil.which("swift"), reason="there is no Swift toolchain here")
def test_swift_built_it_where_there_is_swift(wheel: Path) -> None:
    if os.environ.get(portable.CHOICE, "auto") not in ("auto", "swift"):
        pytest.skip(f"{portable.CHOICE} asks for another toolchain")
    assert json.loads(read(wheel, "manifest.json"))["built_by"] == "swift build -c release"


@pytest.mark.skipif(sys.platform != "linux", reason="an ELF library is looked into")
def test_library_stands_alone(wheel: Path, root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = f"qwen_mfa/_native/{portable.LIBRARY}"
        library = Path(archive.extract(name, tmp_path))
    text = subprocess.run(
        ["readelf", "-dW", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert "RUNPATH" not in text
    assert "RPATH" not in text
    assert f"[{portable.LIBRARY}]" in next(x for x in text.splitlines() if "SONAME" in x)
    system = {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    assert set(re.findall(r"NEEDED.*\[(.*)\]", text)) <= system
    data = library.read_bytes()
    for folder in (str(root), str(Path.home()), "/tmp/", "/opt/"):
        assert folder.encode() not in data


@pytest.mark.usefixtures("in_tree")
@pytest.mark.slow
def test_pip_builds_the_same_wheel(wheel: Path, root: Path, tmp_path: Path) -> None:
    """`make wheel` goes through an isolated `build`, and test_reproduce by way of an sdist."""
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps",
            "-w", str(tmp_path), ".",
        ],
        cwd=root, check=True, capture_output=True,
    )  # fmt: skip
    (made,) = tmp_path.glob("*.whl")
    assert made.name == wheel.name
    assert made.read_bytes() == wheel.read_bytes()
