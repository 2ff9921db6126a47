"""The workflows: what GitHub would refuse, what is unsafe, and commands that are not there."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from build_tools import __main__ as build_tools_main
from tests.build_tools.release import workflows
from tests.build_tools.release.workflows import FILES, ROOT, Step

BIN = Path(sys.executable).parent
# Hosted images that GitHub's list names and does not call deprecated or a preview.
RUNNERS = {"ubuntu-24.04", "ubuntu-24.04-arm", "macos-15", "macos-26"}
MAC = ["self-hosted", "macOS", "ARM64"]
PINNED = re.compile(r"^\s*(?:- )?uses: [\w.-]+/[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$")
OWN = re.compile(r"^\s*uses: \$/\.github/workflows/(?P<name>[\w.-]+)$")
STEPS = [step for path in FILES for step in workflows.steps(path)]
SCRIPTS = [step for step in STEPS if step.script]
# Optional rules of shellcheck that are matters of taste: braces, double brackets, hidden statuses.
TASTE = "SC2250,SC2292,SC2310,SC2312"
EXPECTED = {"ci.yml", "wheels.yml", "reproduce.yml", "release.yml", "upstream.yml"}


def _id(step: Step) -> str:
    return f"{step.file}:{step.job}:{step.name}"


def _run(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120, input=text
    )


def test_the_five_workflows_are_there() -> None:
    assert {path.name for path in FILES} == EXPECTED


def test_they_satisfy_githubs_schema() -> None:
    done = _run(
        str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows",
        *map(str, FILES),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_zizmor_at_its_strictest_finds_the_one_mac_only() -> None:
    done = _run(
        str(BIN / "zizmor"), "--offline", "--persona", "auditor", "--strict-collection",
        "--no-ignores", "--no-progress", "--quiet", "--format=json", str(workflows.FOLDER),
    )  # fmt: skip
    found = json.loads(done.stdout)
    # A GPU can be had on a machine of our own only; a variable switches that job on.
    assert [each["ident"] for each in found] == ["self-hosted-runner"], done.stdout
    assert "wheels.yml" in json.dumps(found[0]["locations"])


def test_zizmor_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / ".github" / "workflows" / "bad.yml"
    bad.parent.mkdir(parents=True)
    text = (workflows.FOLDER / "ci.yml").read_text(encoding="utf-8")
    bad.write_text(text.replace("permissions: {}", "permissions: write-all", 1), encoding="utf-8")
    done = _run(str(BIN / "zizmor"), "--offline", "--persona", "auditor", "--quiet", str(bad))
    assert "excessive-permissions" in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned_with_its_version(path: Path) -> None:
    lines = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(- )?uses:", line)
    ]
    assert lines
    for line in lines:
        own = OWN.match(line)
        assert PINNED.match(line) or own, line
        if own:
            assert (workflows.FOLDER / own["name"]).is_file(), line


def test_one_action_has_one_hash() -> None:
    uses = {step.data["uses"] for step in STEPS if "uses" in step.data}
    names = [each.partition("@")[0] for each in uses]
    assert len(names) == len(set(names)), sorted(uses)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_house_rules(path: Path) -> None:
    data = workflows.load(path)
    assert data["permissions"] == {}
    assert "concurrency" in data
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(data["on"])
    for name, job in data["jobs"].items():
        assert "permissions" in job, name
        if "uses" in job:
            continue
        assert isinstance(job["timeout-minutes"], int), name
        matrix = job.get("strategy", {}).get("matrix", {})
        listed = matrix.get("runner", [each["runner"] for each in matrix.get("include", [])])
        if job["runs-on"] == MAC:
            assert job["if"] == "vars.SELF_HOSTED_MAC == 'true'"
            # Whoever can open a pull request must not be able to run code there.
            assert "pull_request" not in data["on"]
            continue
        runners = listed if "matrix" in job["runs-on"] else [job["runs-on"]]
        assert runners
        assert set(runners) <= RUNNERS, name
        for each in job["steps"]:
            if each.get("uses", "").startswith("actions/checkout@"):
                assert each["with"]["persist-credentials"] is False, name


def test_what_is_published_is_built_without_caches() -> None:
    for name in ("wheels.yml", "reproduce.yml", "release.yml"):
        text = (workflows.FOLDER / name).read_text(encoding="utf-8")
        assert "actions/cache@" not in text
        assert not re.search(r"^\s+cache:", text, re.MULTILINE)


@pytest.mark.parametrize("step", SCRIPTS, ids=_id)
def test_expressions_stay_out_of_scripts(step: Step) -> None:
    assert "${{" not in step.script


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_expressions_name_things_that_exist(path: Path) -> None:
    data = workflows.load(path)
    for name, job in data["jobs"].items():
        needs = job.get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        assert set(needs) <= set(data["jobs"]), name
        text = repr(job)
        assert set(re.findall(r"needs\.([\w-]+)\.", text)) <= set(needs), name
        ids = {each["id"] for each in job.get("steps", []) if "id" in each}
        assert set(re.findall(r"steps\.([\w-]+)\.", text)) <= ids, name
        matrix = job.get("strategy", {}).get("matrix", {})
        keys = set(matrix) | {key for each in matrix.get("include", []) for key in each}
        assert set(re.findall(r"matrix\.([\w-]+)", text)) <= keys, name


def test_nothing_is_published_unless_everything_passed() -> None:
    jobs = workflows.jobs(workflows.FOLDER / "release.yml")

    def before(name: str) -> set[str]:
        needs = jobs[name].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*(before(each) for each in direct))

    assert before("publish") == {"attest", "assemble", "check", "wheels", "reproduce"}
    assert {jobs[name]["uses"] for name in ("wheels", "reproduce")} == {
        "$/.github/workflows/wheels.yml",
        "$/.github/workflows/reproduce.yml",
    }
    # A condition such as always() would let a job run after a failure.
    assert not [name for name, job in jobs.items() if "if" in job]
    assert all("continue-on-error" not in repr(job) for job in jobs.values())


def _self_tests() -> dict[str, list[str]]:
    """Return, for each job, the commands that run the self-test of the Metal library."""
    found: dict[str, list[str]] = {}
    for step in SCRIPTS:
        for words in workflows.commands(step.script):
            if any("gpu_selftest.py" in word or word == "$script" for word in words):
                found.setdefault(f"{step.file}:{step.job}", []).append(" ".join(words))
    return found


def test_a_hosted_runner_may_refuse_for_its_device_and_a_mac_may_not() -> None:
    assert not [s for s in SCRIPTS if re.search(r"qwen-mfa\S* selftest --metal", s.script)]
    found = _self_tests()
    assert set(found) == {"ci.yml:macos", "wheels.yml:install", "wheels.yml:mac"}
    for job, commands in found.items():
        (command,) = commands
        assert ("--gpu" in command) == (job == "wheels.yml:mac")
        assert command.endswith("qwen-mfa report.json")


def test_a_release_says_whether_a_gpu_ran_it() -> None:
    steps = workflows.jobs(workflows.FOLDER / "release.yml")["assemble"]["steps"]
    fetched = {step["with"]["pattern"]: step["with"]["path"] for step in steps if "with" in step
               and "pattern" in step["with"]}  # fmt: skip
    assert fetched["report-*"] == "build/reports"
    assert "--reports build/reports" in steps[-2]["run"]
    uploads = {step.data["with"]["name"] for step in STEPS if step.file == "wheels.yml"
               and "upload-artifact" in step.data.get("uses", "")}  # fmt: skip
    assert {"report-${{ matrix.runner }}-${{ matrix.python }}", "report-self-hosted"} <= uploads


def test_apples_compilers_see_every_source_on_both_systems() -> None:
    jobs = workflows.jobs(workflows.FOLDER / "ci.yml")
    assert jobs["shaders"]["needs"] == "shader-sources"
    assert jobs["shaders"]["strategy"]["matrix"]["runner"] == ["macos-15", "macos-26"]
    assert "shaders record" in repr(jobs["shader-sources"]["steps"])
    assert "shaders try build/record --in-process" in jobs["shaders"]["steps"][-1]["run"]


def test_python_314_and_the_free_threaded_build_are_tried() -> None:
    wheels = workflows.jobs(workflows.FOLDER / "wheels.yml")["install"]
    assert {"3.10", "3.14", "3.14t"} <= set(wheels["strategy"]["matrix"]["python"])
    linux = workflows.jobs(workflows.FOLDER / "ci.yml")["linux"]["strategy"]["matrix"]
    assert "3.14" in {each["python"] for each in linux["include"]}


@pytest.mark.parametrize("names", ["dev.in mflux.in", "constraints.txt mflux-constraints.txt"])
def test_what_the_wheel_needs_on_macos_is_in_our_own_environments(names: str) -> None:
    """`make install` installs no dependencies: they have to be there, at a version of ours."""
    settings: Any = tomlkit.parse((ROOT / "pyproject.toml").read_text("utf-8")).unwrap()
    mac = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}
    needed = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, settings["project"]["dependencies"])
        if requirement.marker is None or requirement.marker.evaluate(mac)
    } | {"mlx-metal", "pyobjc-core", "pyobjc-framework-cocoa"}
    assert "pyobjc-framework-metal" in needed
    for name in names.split():
        lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
        there = [Requirement(line) for line in lines if line and not line.startswith("#")]
        found = {canonicalize_name(r.name) for r in there if not r.marker or r.marker.evaluate(mac)}
        assert needed <= found, f"{name} lacks {needed - found}"


def test_only_the_publishing_job_can_publish() -> None:
    jobs = workflows.jobs(workflows.FOLDER / "release.yml")
    publish = jobs["publish"]
    assert publish["environment"] == "release"
    assert publish["permissions"] == {"id-token": "write"}
    assert not [s for s in publish["steps"] if s.get("uses", "").startswith("actions/checkout@")]
    uses = [s["uses"] for s in publish["steps"] if "uses" in s]
    assert sum("pypi-publish" in each for each in uses) == 1
    others = [n for n, job in jobs.items() if n != "publish" and "pypi-publish" in repr(job)]
    assert not others
    assert not re.search(r"secrets\.", (workflows.FOLDER / "release.yml").read_text("utf-8"))


@pytest.mark.parametrize("step", SCRIPTS, ids=_id)
def test_scripts_pass_shellcheck(step: Step) -> None:
    done = _run(
        str(BIN / "shellcheck"), "--shell=bash", "--enable=all", f"--exclude={TASTE}", "-",
        text=f"set -eo pipefail\n{_with_environment(step)}{step.script}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_something() -> None:
    done = _run(str(BIN / "shellcheck"), "--shell=bash", "-", text="rm -rf $folder/*\n")
    assert done.returncode == 1


def _with_environment(step: Step) -> str:
    """Declare the variables that the runner, the workflow and the step set."""
    job = workflows.jobs(workflows.FOLDER / step.file)[step.job]
    names = {*job.get("env", {}), *step.data.get("env", {})}
    names |= {"RUNNER_TEMP", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STEP_SUMMARY"}
    return "".join(f': "${{{name}:?}}"\n' for name in sorted(names))


LOCAL = [
    pytest.param(words, id=f"{_id(step)}:{' '.join(words)[:60]}")
    for step in SCRIPTS
    for words in workflows.commands(step.script)
    if "build_tools" in words or Path(words[0]).name in {"qwen-mfa", "make", "cibuildwheel"}
]


def test_local_commands_were_found() -> None:
    shown = " | ".join(" ".join(each.values[0]) for each in LOCAL)  # type: ignore[arg-type]
    for wanted in (
        "native --engine metal", "build_tools audit", "release-check", "release-assemble",
        "pin HEAD",
        "shaders try", "shaders record", "doctor", "make lint types", "cibuildwheel --platform",
    ):  # fmt: skip
        assert wanted in shown, wanted


@pytest.mark.parametrize("words", LOCAL)
def test_every_local_command_exists_and_its_arguments_parse(words: list[str]) -> None:
    name = Path(words[0]).name
    if "build_tools" in words:
        _parse_build_tools(words[words.index("build_tools") + 1 :])
    elif name == "qwen-mfa":
        _parse_qwen_mfa(words[1:])
    elif name == "make":
        done = _run("make", "--dry-run", "--question", "--always-make", *words[1:])
        assert "No rule to make target" not in done.stderr, done.stderr
    else:
        options = {"$PLATFORM": "linux", "$ARCHS": "x86_64"}
        arguments = [options.get(word, word) for word in words[1:]]
        done = _run(str(BIN / "cibuildwheel"), "--print-build-identifiers", *arguments)
        assert done.returncode == 0, done.stderr


def _parse_build_tools(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in build_tools_main.COMMANDS:
        if name == arguments[0]:
            build_tools_main.load(name).configure(commands.add_parser(name))
    parser.parse_args(arguments)


def _parse_qwen_mfa(arguments: list[str]) -> None:
    from qwen_mfa import cli

    if arguments == ["--version"]:
        return
    cli.parser_for(arguments).parse_args(arguments)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="cibuildwheel needs Python 3.11")
@pytest.mark.parametrize(
    ("platform", "archs", "expected"),
    [
        ("macos", "arm64", ["cp313-macosx_arm64"]),
        ("macos", "x86_64", []),
        ("linux", "x86_64", ["cp313-manylinux_x86_64"]),
        ("linux", "aarch64", ["cp313-manylinux_aarch64"]),
        ("linux", "x86_64,i686,aarch64,ppc64le,s390x,riscv64",
         ["cp313-manylinux_x86_64", "cp313-manylinux_aarch64"]),
        ("windows", "AMD64,x86,ARM64", []),
    ],
)  # fmt: skip
def test_exactly_these_wheels_are_built(platform: str, archs: str, expected: list[str]) -> None:
    command = [str(BIN / "cibuildwheel"), "--print-build-identifiers", "--allow-empty"]
    # Settings in variables would win over those in pyproject.toml.
    env = {name: value for name, value in os.environ.items() if not name.startswith("CIBW_")}
    done = subprocess.run(
        [*command, "--platform", platform, "--archs", archs, str(ROOT)],
        env=env, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == expected
