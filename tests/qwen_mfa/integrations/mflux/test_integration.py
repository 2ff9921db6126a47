"""Switching on and off: what is replaced, what is given back, and everything that is refused."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.mflux import guard, integration, tracing
from qwen_mfa.integrations.mflux.modules import (
    QWEN21_ATTENTION,
    QWEN21_TRANSFORMER,
    QWEN_ATTENTION,
    QWEN_BLOCK,
    QWEN_IMAGE,
    QWEN_TRANSFORMER,
)
from qwen_mfa.integrations.mflux.qwen_step import QwenStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.cpu

STEP = (QWEN_BLOCK, QWEN_TRANSFORMER, QWEN_IMAGE)
NAME = "scaled_dot_product_attention"
PACKAGE = Path(importlib.util.find_spec("mflux").submodule_search_locations[0])  # type: ignore[union-attr, index]


@pytest.fixture(autouse=True)
def off() -> Iterator[None]:
    yield
    mflux.disable()


def modules() -> dict[str, Any]:
    return {
        n: importlib.import_module(n)
        for n in (*STEP, QWEN_ATTENTION, QWEN21_ATTENTION, QWEN21_TRANSFORMER)
    }


def is_ours_to_replace(key: str) -> bool:
    return key.endswith(".__call__") or not key.endswith("__")


def attributes() -> dict[str, Any]:
    """Everything in the modules and classes that the integration may touch."""
    found: dict[str, Any] = {}
    for name, module in modules().items():
        found |= {f"{name}:{key}": value for key, value in vars(module).items()}
        classes = (v for v in vars(module).values() if isinstance(v, type))
        for owner in (c for c in classes if c.__module__ == name):
            found |= {f"{name}:{owner.__name__}.{k}": v for k, v in vars(owner).items()}
    return found


def isolated(code: str, *, path: Path | None = None) -> str:
    """Run ``code`` in a fresh interpreter; what it prints."""
    env = dict(os.environ)
    if path is not None:
        env["PYTHONPATH"] = f"{path}{os.pathsep}{env.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_replaced_and_what_is_not() -> None:
    before = attributes()
    status = mflux.enable()
    after = attributes()
    changed = {key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)}
    changed = {key for key in changed if is_ours_to_replace(key)}
    assert changed == {
        f"{QWEN_ATTENTION}:{NAME}",
        f"{QWEN_ATTENTION}:QwenAttention._convert_mask_for_qwen",
        f"{QWEN_BLOCK}:QwenTransformerBlock.__call__",
        f"{QWEN_TRANSFORMER}:QwenTransformer.__call__",
        f"{QWEN_IMAGE}:QwenImage.compute_guided_noise",
        f"{QWEN21_ATTENTION}:{NAME}",
        f"{QWEN21_TRANSFORMER}:Qwen21Transformer._step_fn",
        f"{QWEN21_TRANSFORMER}:Qwen21Transformer._image_step_fn",
    }
    assert set(status.bound) == changed
    assert status.waiting == ()
    assert modules()[QWEN_ATTENTION].scaled_dot_product_attention is tracing.attend
    assert modules()[QWEN21_ATTENTION].scaled_dot_product_attention is (
        qwen_mfa.scaled_dot_product_attention
    )
    assert mx.fast.scaled_dot_product_attention is not qwen_mfa.scaled_dot_product_attention
    mflux.disable()
    restored = attributes()
    assert restored.keys() == before.keys()
    assert not [
        key for key in before if is_ours_to_replace(key) and restored[key] is not before[key]
    ]


@pytest.mark.parametrize("order", ["enable first", "import first"])
def test_before_and_after_the_import_of_mflux(order: str) -> None:
    enable = "from qwen_mfa.integrations import mflux as host; host.enable()"
    load = f"import {QWEN21_TRANSFORMER}, {QWEN_ATTENTION}, {', '.join(STEP)}"
    steps = [enable, load] if order == "enable first" else [load, enable]
    check = f"""
import sys, inspect, qwen_mfa
from qwen_mfa.integrations.mflux import tracing
for name, ours in (({QWEN_ATTENTION!r}, tracing.attend), ({QWEN21_ATTENTION!r}, qwen_mfa.{NAME})):
    module = sys.modules[name]
    assert module.{NAME} is ours
    assert type(module.__loader__).__name__ == "SourceFileLoader", module.__loader__
    assert module.__spec__.loader is module.__loader__
    assert "mlx.core.fast" in inspect.getsource(module)
print(host.status().waiting, len(host.status().bound))
before = len(sys.meta_path)
host.disable()
print(sys.modules[{QWEN_ATTENTION!r}].{NAME} is __import__("mlx.core").core.fast.{NAME})
print(any(type(f).__name__ == "Hook" for f in sys.meta_path))
"""
    assert isolated("\n".join([*steps, check])).splitlines() == ["() 8", "True", "False"]


def test_enable_does_not_import_mflux() -> None:
    enable = "import sys; from qwen_mfa.integrations import mflux; mflux.enable()"
    code = f"{enable}; print('mflux' in sys.modules)"
    assert isolated(code) == "False"


def test_imported_after_disabling_is_mlx() -> None:
    code = f"""
from qwen_mfa.integrations import mflux
mflux.enable(); mflux.disable()
import mlx.core as mx, {QWEN_ATTENTION} as m
print(m.{NAME} is mx.fast.{NAME})
"""
    assert isolated(code) == "True"


def test_twice_is_once() -> None:
    first = mflux.enable()
    assert mflux.enable() == first
    mflux.disable()
    assert mflux.disable() == mflux.status() == mflux.Status(enabled=False)


def test_other_options_while_on_are_refused() -> None:
    mflux.enable("qwen")
    with pytest.raises(HostError, match=r"is on for qwen .*disable\(\)"):
        mflux.enable("qwen21")
    assert mflux.status().models == ("qwen",)


def test_context_managers_nest_and_survive_exceptions() -> None:
    attention = modules()[QWEN_ATTENTION]
    with mflux.enabled() as status:
        assert status.enabled
        with pytest.raises(RuntimeError), mflux.enabled():
            raise RuntimeError
        assert attention.scaled_dot_product_attention is tracing.attend
    assert attention.scaled_dot_product_attention is mx.fast.scaled_dot_product_attention
    mflux.enable()
    with mflux.enabled():
        pass
    assert mflux.status().enabled


def test_many_threads() -> None:
    before = attributes()
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(index: int) -> None:
        try:
            start.wait()
            for _ in range(20):
                if index % 2:
                    mflux.enable()
                    mflux.status()
                else:
                    mflux.disable()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    mflux.disable()
    after = attributes()
    assert all(after[key] is before[key] for key in before if is_ours_to_replace(key))
    assert sum(type(finder).__name__ == "Hook" for finder in sys.meta_path) == 0


def test_enabling_while_other_threads_import() -> None:
    code = f"""
import threading
from qwen_mfa.integrations import mflux as host
import importlib
names = [{QWEN_ATTENTION!r}, {QWEN21_TRANSFORMER!r}, *{STEP!r}]
host.enable()
threads = [threading.Thread(target=importlib.import_module, args=(n,)) for n in names * 4]
threads += [threading.Thread(target=host.enable) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(host.status().bound), host.status().waiting, host.status().refused)
"""
    assert isolated(code) == "8 () {}"


def test_the_lists_are_complete() -> None:
    """Every module of this mflux that binds the function by name is in a list, and no other."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.ImportFrom) else []
            if (
                NAME in names
                and isinstance(node, ast.ImportFrom)
                and node.module == "mlx.core.fast"
            ):
                found.add(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    listed = {module for names in mflux.MODULES.values() for module in names}
    every = QwenStep(mflux.Options(models=tuple(mflux.MODULES)))
    known = {
        seam.module
        for seam in guard.fitting(guard.seams_of(every), skip_missing=True)
        if seam.attribute == NAME
    }
    assert found == known
    assert found <= listed
    if guard.supported_version().startswith("0.24"):
        assert found == listed


def test_all_models() -> None:
    from mflux.models.flux.model.flux_vae.common import attention  # a light one of the others

    status = mflux.enable("all")
    assert status.models == tuple(mflux.MODULES)
    assert attention.scaled_dot_product_attention is qwen_mfa.scaled_dot_product_attention
    mflux.disable()
    assert attention.scaled_dot_product_attention is mx.fast.scaled_dot_product_attention


@pytest.mark.parametrize("models", ["qwen22", ["qwen", "nope"], []])
def test_unknown_models(models: str | list[str]) -> None:
    with pytest.raises(ValueError, match="choose from qwen, qwen21"):
        mflux.enable(models)


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="must be one of auto, graph, eager, not 'fast'"):
        mflux.enable(qwen21_steps="fast")  # type: ignore[arg-type]


# --- other tools --------------------------------------------------------------------------------


def foreign(*args: Any, **options: Any) -> mx.array:
    return mx.zeros((1,))


@pytest.mark.parametrize("place", ["mx.fast", "module"])
def test_another_tool_was_there_before(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    target = mx.fast if place == "mx.fast" else modules()[QWEN21_ATTENTION]
    monkeypatch.setattr(target, NAME, foreign)
    before = attributes()
    with pytest.raises(HostError, match=r"another tool has replaced.*Nothing was changed"):
        mflux.enable()
    assert not mflux.status().enabled
    assert all(attributes()[key] is before[key] for key in before if not key.endswith("__"))
    assert not any(type(finder).__name__ == "Hook" for finder in sys.meta_path)


def test_another_tool_came_after() -> None:
    mflux.enable()
    before = attributes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules()[QWEN_ATTENTION], NAME, foreign)
        with pytest.raises(HostError, match=f"another tool has replaced {QWEN_ATTENTION}:{NAME}"):
            mflux.disable()
        assert mflux.status().enabled
    assert all(attributes()[key] is before[key] for key in before if not key.endswith("__"))
    mflux.disable()
    assert not mflux.status().enabled


def test_another_tool_came_between_enabling_and_import() -> None:
    code = f"""
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from qwen_mfa.integrations import mflux as host
host.enable("qwen")
import mlx.core as mx
def foreign(*a, **k): pass
mx.fast.{NAME} = foreign
import {QWEN_ATTENTION} as m
print(m.{NAME} is foreign, host.status().bound, list(host.status().refused))
host.disable()
print(m.{NAME} is foreign)
"""
    warning, state, last = isolated(code).splitlines()
    assert "mflux goes on with its own attention here" in warning
    seams = [f"{QWEN_ATTENTION}:{name}" for name in (NAME, "QwenAttention._convert_mask_for_qwen")]
    assert state == f"True () {seams}"
    assert last == "True"


def test_half_imported_module_is_refused() -> None:
    """`enable` called while the module's own import is still running, here from inside of it."""
    code = f"""
import importlib.util, sys, types
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import mflux as host
spec = importlib.util.find_spec({QWEN_ATTENTION!r})
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec._initializing = True  # as importlib marks it while the code runs
try:
    host.enable()
except HostError as error:
    print("is being imported right now" in str(error), host.status().enabled)
print(any(type(f).__name__ == "Hook" for f in sys.meta_path))
"""
    assert isolated(code).splitlines() == ["True False", "False"]


# --- other versions and sources of mflux --------------------------------------------------------


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the real mflux with another version, or with edits in its files."""

    def make(
        version: str = "", edits: dict[str, Callable[[str], str | None]] | None = None
    ) -> Path:
        needed = [PACKAGE / "__init__.py", *(PACKAGE / "models").rglob("qwen*/**/*.py")]
        needed += list((PACKAGE / "models").glob("*.py"))
        for file in needed:
            copy = tmp_path / file.relative_to(PACKAGE.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        for module, edit in (edits or {}).items():
            file = (tmp_path / Path(*module.split("."))).with_suffix(".py")
            text = file.read_text(encoding="utf-8")
            changed = edit(text)
            assert changed != text, "the edit did nothing"
            file.unlink() if changed is None else file.write_text(changed, encoding="utf-8")
        info = tmp_path / "mflux-0.dist-info"
        info.mkdir()
        version = version or guard.supported_version()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mflux\nVersion: {version}\n")
        return tmp_path

    return make


def refusal(path: Path) -> str:
    code = """
import sys
from qwen_mfa.errors import HostError
from qwen_mfa.integrations import mflux as host
try:
    print(host.enable().version)
except HostError as error:
    assert not host.status().enabled
    assert not any(type(f).__name__ == "Hook" for f in sys.meta_path)
    print(error)
"""
    return isolated(code, path=path)


@pytest.mark.parametrize("version", ["0.22.9", "0.25.0", "1.0", "0.25.0rc1", "nonsense"])
def test_versions_that_were_not_tested(altered: Callable[..., Path], version: str) -> None:
    assert refusal(altered(version)).startswith(f"mflux {version} was not tested")


def test_a_later_patch_release_is_accepted(altered: Callable[..., Path]) -> None:
    assert refusal(altered("0.24.7")) == "0.24.7"


@pytest.mark.parametrize(
    ("module", "edit", "message"),
    [
        (
            QWEN_ATTENTION,
            lambda s: s.replace(f"from mlx.core.fast import {NAME}", "from mlx.core import fast"),
            "no longer has `from mlx.core.fast import",
        ),
        (
            QWEN_ATTENTION,
            lambda s: s.replace("scale=scale_value", "window=7, scale=scale_value"),
            "in an unknown way",
        ),
        (
            QWEN_ATTENTION,
            lambda s: s.replace(
                "txt_seq_len: int,\n    )", "txt_seq_len: int, extra: int = 0,\n    )"
            ),
            "takes mask, joint_seq_len, txt_seq_len, extra",
        ),
        (
            QWEN_ATTENTION,
            lambda s: s.replace("def _convert_mask_for_qwen", "def _convert_mask"),
            "it has no QwenAttention._convert_mask_for_qwen",
        ),
        (
            QWEN21_TRANSFORMER,
            lambda s: s.replace(
                "mx.compile(self._image_forward)", "mx.compile(self._image_forward, shapeless=True)"
            ),
            "no longer does `self._image_step_fn = mx.compile(self._image_forward)`",
        ),
        (QWEN21_ATTENTION, lambda _: None, "there is no such module"),
        (QWEN21_ATTENTION, lambda s: s + "\ndef (:\n", "cannot be read"),
    ],
    ids=["import", "keyword", "argument", "renamed", "compile", "gone", "syntax"],
)
def test_sources_that_are_not_as_expected(
    altered: Callable[..., Path], module: str, edit: Callable[[str], str | None], message: str
) -> None:
    text = refusal(altered(edits={module: edit}))
    assert text.startswith(f"mflux is not as expected at {module}:")
    assert message in text
    assert "Nothing was changed" in text


def test_an_unaltered_copy_is_accepted(altered: Callable[..., Path]) -> None:
    """Guard of the tests above: it is the edit that is refused, not the copy."""
    assert refusal(altered()) == guard.supported_version()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_finds_the_lock_open() -> None:
    """Another thread was switching at the moment of the fork; in the child it is not there."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with integration._host.lock:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    child = os.fork()
    if not child:
        signal.alarm(10)
        os._exit(int(mflux.status().enabled))
    done.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0, "it waited for a lock that nobody can open"
