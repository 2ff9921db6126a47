"""Where shaders came from, and what is advised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from qwen_mfa.errors import NativeError
from qwen_mfa.kernels import metal
from qwen_mfa.kernels.metal import shaders
from qwen_mfa.problem import describe
from tests.qwen_mfa.attention.problems import Shape, draw
from tests.qwen_mfa.kernels.metal.test_path import attend

if TYPE_CHECKING:
    from qwen_mfa.kernels.base import Call
    from tests.qwen_mfa.kernels.metal.conftest import StandinMac

pytestmark = pytest.mark.cpu


def call(scale: float = 0.25) -> Call:
    from qwen_mfa.kernels.base import Call

    q, k, v = draw(Shape(hq=1, hkv=1, sq=4, skv=5, d=8, dv=8), mx.bfloat16)
    return Call(q=q, k=k, v=v, scale=scale)


def test_no_call_no_origin(mac: StandinMac) -> None:
    assert shaders.origins() == []
    assert shaders.advice([]) is None
    del mac


@pytest.mark.parametrize(("rejects", "variant"), [(0, "upstream"), (1, "plain")])
def test_every_shader_says_where_it_came_from(mac: StandinMac, rejects: int, variant: str) -> None:
    mac.switch(rejects_asm=rejects)
    attend(call())
    attend(call(), metal.low)
    attend(call(0.5))
    attend(call())
    found = shaders.origins()
    assert [(x.place, x.variant) for x in found] == [("runtime", variant)] * 3
    assert len({x.key for x in found}) == 3
    assert all(bool(x.attempts) == bool(rejects) for x in found)
    assert "macOS's own compiler" in str(found[0])
    assert shaders.advice(found) is None


def test_what_to_do_when_nothing_compiles(mac: StandinMac) -> None:
    mac.switch(rejects_asm=1, rejects_plain=1)
    work = call()
    problem = describe(work.q, work.k, work.v)
    assert problem is not None
    with pytest.raises(NativeError, match="wheel with a shader pack") as raised:
        metal.accurate.run(work)
    assert "illegal __asm" in str(raised.value)
    assert shaders.origins()[0].place == "failed"


def test_a_library_without_a_record(mac: StandinMac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaders, "_SYMBOL", "mfa_of_another_build")
    assert shaders.origins() == []
    del mac
