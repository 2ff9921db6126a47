"""``makeLibrary(source:)`` in this process, through PyObjC: what the library does at run time.

It takes a Metal device, but none that can run a kernel: a paravirtual one compiles.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from build_tools.support.errors import ShaderError, ToolError

# MTLLanguageVersion is major << 16 | minor; the others are the enumerations' own numbers.
_MATH = {"safe": 0, "relaxed": 1, "fast": 2}
_FUNCTIONS = {"fast": 0, "precise": 1}


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """The run-time compiler of one Metal device."""

    device: Any
    options: Any
    name: str

    def error(self, text: str) -> str | None:
        """Compile ``text`` and return what the compiler says against it, or ``None``."""
        library, error = self.device.newLibraryWithSource_options_error_(text, self.options, None)
        if library is not None:
            return None
        return str(error.localizedDescription()) if error is not None else "no library, no error"


def compiler(options: str) -> Compiler | None:
    """Return the compiler for options as a key states them; ``None`` where there is no device.

    Raises:
        ToolError: PyObjC is not installed, or this is no Mac.
        ShaderError: The options say something that has no counterpart here.

    """
    try:
        metal: Any = importlib.import_module("Metal")
    except ImportError as error:
        msg = f"compiling in this process needs macOS and pyobjc-framework-Metal ({error})"
        raise ToolError(msg) from error
    words = dict(word.partition("=")[::2] for word in options.split(" "))
    chosen = metal.MTLCompileOptions.alloc().init()
    try:
        major, minor = map(int, words["language"].split("."))
        chosen.setLanguageVersion_(major << 16 | minor)
        chosen.setMathMode_(_MATH[words["math"]])
        chosen.setMathFloatingPointFunctions_(_FUNCTIONS[words["functions"]])
    except (KeyError, ValueError) as error:
        msg = f"compile options {options!r} are not understood ({error})"
        raise ShaderError(msg) from error
    device = metal.MTLCreateSystemDefaultDevice()
    if device is None:
        return None
    return Compiler(device=device, options=chosen, name=str(device.name()))
