"""What CONTRIBUTING.md says: the checks, their hooks, the direction of imports, the forms."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import yaml

from build_tools.support.paths import ROOT

BIN = Path(sys.executable).parent
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | env, check=False, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def layers(package: str) -> list[str]:
    """Return the layers of ``package`` in pyproject.toml, from the top down."""
    settings: Any = tomlkit.parse((ROOT / "pyproject.toml").read_text("utf-8")).unwrap()
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract.get("containers") == [package]:
            return [layer.strip("()") for layer in contract["layers"]]
    raise AssertionError(package)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(
        str(BIN / "lint-imports"), "--no-cache", "--no-logo", "--config", "pyproject.toml",
        cwd=folder, PYTHONPATH=f"{folder / 'mfa_wheel'}:{folder}",
    )  # fmt: skip


def test_imports_point_down() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("build_tools/support/files.py", "build_tools.commands.common"),
        ("build_tools/source/lock.py", "build_tools.native.toolchain"),
        ("mfa_wheel/qwen_mfa/errors.py", "qwen_mfa.kernels.base"),
        ("build_tools/support/files.py", "qwen_mfa.errors"),
    ],
)
def test_an_import_that_points_up_is_found(tmp_path: Path, below: str, above: str) -> None:
    for name in ("build_tools", "mfa_wheel"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / below).open("a", encoding="utf-8") as stream:
        stream.write(f"import {above}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert above in done.stdout


@pytest.mark.parametrize(
    ("package", "folder"), [("build_tools", "build_tools"), ("qwen_mfa", "mfa_wheel/qwen_mfa")]
)
def test_the_tree_shows_every_part_in_the_order_of_imports(package: str, folder: str) -> None:
    parts = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert parts <= set(layers(package))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.partition(f"\n{folder}/")[2].partition("\n\n")[0]
    shown = re.findall(r"^  (\w+)/", tree, re.MULTILINE)
    assert shown == [layer for layer in layers(package) if layer in parts]


def test_the_hooks_are_the_checks_of_make() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.findall(r"^LINT := (.*)$", makefile, re.MULTILINE)[0].split()
    assert hooks == [f"make {target}" for target in [*lint, "types"]]
    assert run(str(BIN / "pre-commit"), "validate-config").returncode == 0


def test_make_test_says_what_it_is_at() -> None:
    plan = run("make", "--dry-run", "test").stdout
    for part in ("formatting and lint", "direction of imports", "types", "swift test", "installed"):
        assert re.search(rf"==> %s.*{part}", plan), part


def test_an_editable_install_is_refused_with_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "editable_wheel", "--dist-dir", str(tmp_path)]
    done = run(*command)
    assert done.returncode != 0
    assert "carry no native library" in done.stderr
    assert "make install" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_forms_are_what_the_host_accepts() -> None:
    check = [str(BIN / "check-jsonschema"), "--builtin-schema"]
    forms = [str(path) for path in FORMS.glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 2
    for command in (
        [*check, "vendor.github-issue-forms", *forms],
        [*check, "vendor.github-issue-config", str(FORMS / "config.yml")],
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
