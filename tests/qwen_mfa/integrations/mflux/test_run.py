"""`qwen-mfa run`: real commands in real processes; what passes through, and what is reported."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mflux.models.qwen.cli.qwen_image_generate import QwenImageCommand
from mflux.models.qwen.model.qwen_transformer import qwen_attention
from mflux.models.qwen.variants.txt2img import qwen_image

from qwen_mfa import cli, telemetry
from qwen_mfa.cli import device
from qwen_mfa.cli.bench import pipeline
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux import guard
from qwen_mfa.selection import session
from tests.standins import gpu

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.cpu

QWEN_MFA = Path(sys.executable).parent / "qwen-mfa"
ROOT = Path(__file__).resolve().parents[4]
SMALL = "tests.qwen_mfa.integrations.mflux.small_generate"
# One call of mflux's attention function in its own module, 80 tokens.
ATTEND = f"""
import sys, mlx.core as mx
from {qwen_attention.__name__} import scaled_dot_product_attention as attend
x = mx.random.normal((1, 2, 80, 128))
mx.eval(attend(x, x, x, scale=0.1))
"""


def run(
    *words: str, options: Sequence[str] = (), stdin: str = "", cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [QWEN_MFA, "run", *options, "--", *words],
        cwd=cwd,
        check=False,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_mflux_lists_our_command() -> None:
    """It describes the options, too: what mflux's own command has."""
    mflux_lists = QWEN_MFA.with_name("mflux-capabilities")
    ours, own = (
        json.loads(
            subprocess.run(
                [mflux_lists, "--command", name], capture_output=True, text=True, check=True
            ).stdout
        )["commands"][0]
        for name in ("mflux-generate-qwen-mfa", "mflux-generate-qwen")
    )
    assert ours["coverage"] == "full"
    assert ours["options"] == own["options"]
    done = subprocess.run(
        [QWEN_MFA.with_name("mflux-generate-qwen-mfa"), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("usage: mflux-generate-qwen ")
    assert "attention never ran through qwen-mfa" in done.stderr


def script(folder: Path, code: str, *, attend: bool = True) -> str:
    file = folder / "program.py"
    file.write_text((ATTEND if attend else "") + code, encoding="utf-8")
    return str(file)


def test_generating_a_picture_with_mflux_command(tmp_path: Path) -> None:
    words = ["--prompt", "a cat", "--negative-prompt", "a dog", "--steps", "2", "--seed", "5"]
    words += ["--height", "128", "--width", "128"]
    plain, ours, report = (tmp_path / name for name in ("plain.png", "ours.png", "report.json"))
    subprocess.run(
        [sys.executable, "-m", SMALL, *words, "--output", plain],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    options = ["--json", str(report), "--fused-blocks", "off"]
    done = run("-m", SMALL, *words, "--output", str(ours), options=options)
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(
        r"qwen-mfa: attention ran 12 times \(cpu 12\); (saved|lost) \d+\.\d\d s against MLX", last
    ), last
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["calls"] == {"cpu": 12}  # 2 steps, 2 prompts, 3 blocks
    assert written["exit_status"] == 0
    assert written["program"][:2] == ["-m", SMALL]
    assert written["saving"]["mlx"] > 0
    assert (
        f"{qwen_attention.__name__}:scaled_dot_product_attention"
        in (written["integration"]["bound"])
    )
    from PIL import Image, ImageChops

    with Image.open(plain) as first, Image.open(ours) as second:
        assert first.size == second.size == (128, 128)
        assert max(high for _, high in ImageChops.difference(first, second).getextrema()) <= 1
        assert len(first.getcolors(1 << 16) or []) > 20, "the picture is empty"


def test_the_line_tells_what_was_done_around_attention(tmp_path: Path) -> None:
    """Guidance 1 as with Lightning adapters, blocks compiled, --low-ram, a picture of each step."""
    words = ["--prompt", "a cat", "--negative-prompt", "a dog", "--steps", "2", "--guidance", "1"]
    words += ["--height", "128", "--width", "128", "--low-ram", "--output", str(tmp_path / "x.png")]
    words += ["--stepwise-image-output-dir", str(tmp_path / "steps")]
    report = tmp_path / "report.json"
    done = run("-m", SMALL, *words, options=["--json", str(report), "--fused-blocks", "on"])
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "fused blocks 5 of 6" in last, last
    assert "2 negative passes skipped (guidance is 1)" in last
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["parts"]["fused blocks"] == {"fused": 5, "validated": 1}
    assert written["integration"]["options"]["fused_blocks"] == "on"
    assert len(list((tmp_path / "steps").glob("*step*.png"))) == 3  # before, and after each


@pytest.fixture
def gpu_standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLX's default device says that it is a GPU, and float64 fails there."""
    monkeypatch.delenv("QWEN_MFA_BACKEND")
    telemetry.start()
    session.start()
    gpu.activate(monkeypatch.setattr)
    # It watches MLX's functions, which the integration would take for another tool's work.
    monkeypatch.setattr(guard, "_is_mlx", lambda _: None)
    yield
    mflux.disable()


@pytest.mark.usefixtures("gpu_standin")
def test_a_picture_where_the_default_device_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the program puts in their place stays in this process otherwise.
    monkeypatch.setattr(sys, "argv", sys.argv)
    for owner, name in ((QwenImageCommand, "load"), (qwen_image.VAEUtil, "decode")):
        monkeypatch.setattr(owner, name, owner.__dict__[name])
    report, picture = tmp_path / "report.json", tmp_path / "picture.png"
    words = ["--prompt", "a cat", "--negative-prompt", "a dog", "--steps", "2", "--seed", "5"]
    words += ["--height", "64", "--width", "64", "--output", str(picture)]
    options = ["--json", str(report), "--fused-blocks", "on", "--free-modulation", "--quiet"]
    assert cli.main(["run", *options, "--", "-m", SMALL, *words]) == 0
    assert picture.exists()
    written = json.loads(report.read_text(encoding="utf-8"))
    assert "MLX's default device is not the CPU" in str(written["reasons_for_mlx"])
    assert written["parts"]["fused blocks"] == {"fused": 11, "validated": 1}
    assert written["parts"]["early start"] == {"starts": 2}


@pytest.mark.usefixtures("gpu_standin")
def test_a_step_s_benchmark_where_the_default_device_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "HEADS", 2)
    monkeypatch.setattr(pipeline, "TEXT_DIM", 64)
    monkeypatch.setattr(device, "SIDE", 64)
    words = ["--blocks", "1", "--rounds", "1", "--ways", "all, bfloat16, blocks fused"]
    assert cli.main(["bench", "step", "2,3", *words]) == 0
    assert "product of 64 x 64 matrices" in capsys.readouterr().out


def test_console_script_of_this_environment() -> None:
    done = run("mflux-generate-qwen", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: mflux-generate-qwen")
    assert "attention never ran" in done.stderr


def test_console_script_that_refuses_its_arguments() -> None:
    done = run("mflux-generate-qwen", "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr or "prompt" in done.stderr


def test_arguments_streams_and_exit_status(tmp_path: Path) -> None:
    code = """
print(sys.argv[1:], sys.stdin.read())
print("to stderr", file=sys.stderr)
sys.exit(7)
"""
    words = [script(tmp_path, code), "--quiet", "--", "-m", "ä b"]
    done = run(*words, stdin="from stdin")
    assert done.returncode == 7
    assert done.stdout == "['--quiet', '--', '-m', 'ä b'] from stdin\n"
    assert "to stderr" in done.stderr
    assert re.search(r"^qwen-mfa: attention ran 1 times \(cpu 1\)", done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("ending", "status", "text"),
    [
        ("", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(True)", 1, ""),
        ("sys.exit(256 + 9)", 9, ""),
        ("sys.exit('a message')", 1, "a message"),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_exit_status_is_the_programs(tmp_path: Path, ending: str, status: int, text: str) -> None:
    program = script(tmp_path, f"import sys\n{ending}\n", attend=False)
    alone = subprocess.run(
        [sys.executable, program], check=False, capture_output=True, text=True, timeout=60
    )
    done = run(program, options=["--quiet"])
    assert done.returncode == alone.returncode == status
    assert done.stderr == alone.stderr
    assert text in done.stderr


def started(program: str) -> subprocess.Popen[str]:
    """Start ``program`` under `qwen-mfa run` and wait for the line that it prints."""
    child = subprocess.Popen(
        [QWEN_MFA, "run", "--", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals(tmp_path: Path, name: str) -> None:
    code = """
import atexit, time
atexit.register(lambda: print("exit handlers ran", flush=True))
print("ready", flush=True)
time.sleep(60)
"""
    child = started(script(tmp_path, code))
    child.send_signal(getattr(signal, name))
    out, err = child.communicate(timeout=60)
    assert child.returncode == -getattr(signal, name)  # as without qwen-mfa
    if name == "SIGINT":
        assert "KeyboardInterrupt" in err
        assert "attention ran 1 times" in err
        assert out == "exit handlers ran\n"


def test_a_handled_signal_is_the_programs_business(tmp_path: Path) -> None:
    code = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", flush=True)
time.sleep(60)
"""
    child = started(script(tmp_path, code))
    child.terminate()
    _, err = child.communicate(timeout=60)
    assert child.returncode == 3
    assert "attention ran 1 times" in err


def test_quiet_with_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run(script(tmp_path, ""), options=["--quiet", "--json", str(report)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["calls"] == {"cpu": 1}
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".json"] == ["report.json"]


def test_why_nothing_was_gained(tmp_path: Path) -> None:
    code = """
compiled = mx.compile(lambda x: attend(x, x, x, scale=0.1))
mx.eval(compiled(x))
"""
    done = run(script(tmp_path, code))
    assert "MLX for the rest: inside mx.compile" in done.stderr


def test_padding_is_counted(tmp_path: Path) -> None:
    code = """
x = mx.random.normal((1, 24, 700, 128))
mx.eval(attend(x, x, x, scale=0.1, mask=(mx.arange(700) < 600)[None, None, None]))
"""
    done = run(script(tmp_path, code))
    assert "attention ran 2 times (cpu 2); padding removed 1 times" in done.stderr


def test_module_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("value = 4\n", encoding="utf-8")
    (tmp_path / "main.py").write_text("import neighbour, sys\nsys.exit(neighbour.value)\n")
    assert run("-m", "main", cwd=tmp_path).returncode == 4
    assert run(str(tmp_path / "main.py")).returncode == 4


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], [], "name the program to run"),
        (["-m"], [], "name the program to run"),
        (["no-such-program"], [], "there is no program 'no-such-program'"),
        (["/bin/ls"], [], "/bin/ls is no Python program of this environment"),
        (["-m", "json.tool"], ["--models", "nope"], "choose from qwen, qwen21"),
        (["-m", "json.tool"], ["--json", "/dev/null/folder/x.json"], "cannot be written"),
        (["-m", "json.tool"], ["--json", "/tmp"], "is a folder"),
    ],
    ids=["none", "no-module", "missing", "not-python", "models", "no-folder", "folder"],
)
def test_bad_use(words: list[str], options: list[str], message: str) -> None:
    done = run(*words, options=options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("qwen-mfa: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_module_is_pythons_own_error() -> None:
    done = run("-m", "no_such_module_at_all")
    assert done.returncode == 1
    assert "no_such_module_at_all" in done.stderr


def test_report_that_cannot_be_written_at_the_end(tmp_path: Path) -> None:
    report = tmp_path / "gone" / "report.json"
    report.parent.mkdir()
    code = f"import shutil; shutil.rmtree({str(report.parent)!r}); sys.exit(5)"
    done = run(script(tmp_path, code), options=["--json", str(report)])
    assert done.returncode == 5
    assert "report.json was not written" in done.stderr
