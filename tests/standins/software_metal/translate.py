"""Text of a Metal source to C++ that clang compiles with the headers of ``include``.

Metal is C++ with attributes, address spaces and literals of its own. The headers define most of it;
what they cannot is rewritten here, by patterns: attributes are taken out, floating-point literals
become FP32, swizzles calls, stores of vectors calls, and a table of functions and constants is
added, by which the host finds them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LITERAL = re.compile(r"(?<![\w.])(\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)(?![\w.])")
_CONSTANT = re.compile(
    r"constant\s+(?P<type>\w+)\s+(?P<name>\w+)\s*\[\[\s*function_constant\((?P<index>\d+)\)\s*\]\]\s*;"
)
_KERNEL = re.compile(r"\bkernel\s+void\s+(?P<name>\w+)\s*\((?P<parameters>[^{};]*)\)\s*\{")
_PARAMETER = re.compile(r"(?P<type>.*?)(?P<name>\w+)\s*\[\[\s*(?P<attribute>.*?)\s*\]\]$")
_SLOT = re.compile(r"(?P<kind>buffer|threadgroup)\((?P<index>\d+)\)")
_STORE = re.compile(r"\*\((?P<space>device|threadgroup) (?P<type>vec<\w+, 2>)\s*\*\)\(")
_DEFINED = re.compile(r"is_function_constant_defined\(\s*(\w+)\s*\)")
# What makes lanes wait for each other.
_MEETINGS = re.compile(r"_barrier\b|\bsimd_\w+\(|multiply_accumulate|async_copy|simdgroup_event")
_EVENT = re.compile(r"#ifndef __METAL_SIMDGROUP_EVENT\n(.*?)#endif", re.DOTALL)
_POSITIONS = {
    "threadgroup_position_in_grid": "at->group",
    "thread_position_in_threadgroup": "at->thread",
    "thread_position_in_grid": "software_metal::in_grid(*at)",
    "threadgroups_per_grid": "at->groups",
    "threads_per_threadgroup": "at->group_size",
    "thread_index_in_threadgroup": "at->index",
    "simdgroup_index_in_threadgroup": "at->index / 32",
    "thread_index_in_simdgroup": "at->index % 32",
}
_HOST = "SOFTWARE_METAL_HOST"
_TAIL = """
#undef kernel
#undef device
#undef threadgroup
#undef constant
#undef thread
#include "software_metal_entry.h"
namespace software_metal {
  template <typename T> struct place {
    static T of(Triple t) { return T(t.x); }
    static T of(uint32_t i) { return T(i); }
  };
  template <typename E> struct place<metal::vec<E, 2>> {
    static metal::vec<E, 2> of(Triple t) { return metal::vec<E, 2>(E(t.x), E(t.y)); }
  };
  template <typename E> struct place<metal::vec<E, 3>> {
    static metal::vec<E, 3> of(Triple t) { return {E(t.x), E(t.y), E(t.z)}; }
  };
  [[maybe_unused]] static Triple in_grid(const Position &at) {
    // Every threadgroup but the last ones has the same size, and those come last.
    return {at.group.x * at.full_size.x + at.thread.x, at.group.y * at.full_size.y + at.thread.y,
            at.group.z * at.full_size.z + at.thread.z};
  }
}
#define SOFTWARE_METAL_HOST \\
  __attribute__((no_sanitize("thread"), visibility("default"), disable_sanitizer_instrumentation))
"""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a source: its name and how its parameters are made from what is bound."""

    name: str
    arguments: tuple[str, ...]


class TranslationError(Exception):
    """A source has something that is not modelled."""


def translate(source: str, *, shown_as: str = "source.metal") -> str:
    """Return ``source`` as C++; lines keep their numbers, under the name ``shown_as``.

    Raises:
        TranslationError: A kernel's parameter has an attribute that is not modelled.

    """
    kernels = [_kernel(found) for found in _KERNEL.finditer(_without_comments(source))]
    body = _CONSTANT.sub(_constant_definition, source)
    body = re.sub(r"\[\[[^\]]*\]\]", "", body)
    body = _LITERAL.sub(r"\1f", body)
    body = _DEFINED.sub(r"\1_is_defined", body)
    body = _stores_as_calls(body)
    body = re.sub(r"\.yx\b(?!\()", ".yx()", body)
    event = _EVENT.search(source)
    private = '#include "software_metal_air.h"\n' if event and "__asm" in event[1] else ""
    head = "#include <metal_stdlib>\n"  # partly the language itself: known before it is included
    return (
        f'{head}#line 1 "{shown_as}"\n{body}\n#line 1 "{shown_as} (entry)"\n{private}'
        f"{_table(source, kernels)}"
    )


def _stores_as_calls(text: str) -> str:
    """Rewrite ``*(device vec<T, 2>*)(where) = value;``; loads of the same form stay."""
    parts, done = [], 0
    for found in _STORE.finditer(text):
        end = _closing(text, found.end() - 1)
        assignment = re.compile(r"\s*=(?!=)\s*([^;]*);").match(text, end + 1)
        if assignment is None or found.start() < done:
            continue
        where = f"({found['space']} {found['type']}*)({text[found.end() : end]})"
        parts += [text[done : found.start()], f"software_metal_store({where}, {assignment[1]});"]
        done = assignment.end()
    return "".join([*parts, text[done:]])


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


def _without_comments(source: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)


def _constant_definition(found: re.Match[str]) -> str:
    # Written by the host before each run, so the compiler must not know them.
    return f"static {found['type']} {found['name']}; static bool {found['name']}_is_defined;"


def _kernel(found: re.Match[str]) -> Kernel:
    parameters = [" ".join(p.split()) for p in found["parameters"].split(",")]
    return Kernel(
        name=found["name"],
        arguments=tuple(_argument(found["name"], text) for text in parameters if text),
    )


def _argument(kernel: str, text: str) -> str:
    parameter = _PARAMETER.match(text)
    if parameter is None:
        msg = f"{kernel}: the parameter '{text}' has no attribute"
        raise TranslationError(msg)
    kind, attribute = parameter["type"].strip(), parameter["attribute"]
    for space in ("device", "threadgroup"):
        number = {"device": 1, "threadgroup": 3}[space]
        kind = re.sub(rf"\b{space}\b", f"__attribute__((address_space({number})))", kind)
    kind = re.sub(r"\b(constant|thread)\b", "", kind).strip()
    slot = _SLOT.fullmatch(attribute)
    if slot is not None:
        held = f"{slot['kind']}s[{slot['index']}]"
        # A reference is bound as a buffer that holds the value.
        if kind.endswith("&"):
            return f"*({kind[:-1]}*)(uintptr_t)({held})"
        return f"({kind})(uintptr_t)({held})"
    if attribute not in _POSITIONS:
        msg = f"{kernel}: the attribute [[{attribute}]] is not modelled"
        raise TranslationError(msg)
    return f"software_metal::place<{kind}>::of({_POSITIONS[attribute]})"


def _table(source: str, kernels: list[Kernel]) -> str:
    meets = "true" if _MEETINGS.search(_without_comments(source)) else "false"
    runs = [
        f"{_HOST} static void software_metal_run_{kernel.name}(void *const *buffers, "
        "void *const *threadgroups, const software_metal::Position *at) {\n"
        "  using namespace metal;\n"
        f"  {kernel.name}({', '.join(kernel.arguments)});\n}}"
        for kernel in kernels
    ]
    functions = [f'{{"{k.name}", software_metal_run_{k.name}, {meets}}}' for k in kernels]
    # One that is declared and never used needs no value; nor does one that is asked for.
    text = _without_comments(source)
    asked = set(_DEFINED.findall(text))
    needed = {
        c["name"]: len(re.findall(rf"\b{c['name']}\b", text)) > 1 and c["name"] not in asked
        for c in _CONSTANT.finditer(text)
    }
    constants = [
        f"{{{c['index']}, (void *)&{c['name']}, &{c['name']}_is_defined, sizeof {c['name']}, "
        f"{'true' if needed[c['name']] else 'false'}}}"
        for c in _CONSTANT.finditer(text)
    ]
    return "\n".join(
        [
            _TAIL,
            *runs,
            _array("Function", "functions", [*functions, "{nullptr, nullptr, false}"]),
            _array("Constant", "constants", [*constants, "{-1, nullptr, nullptr, 0, false}"]),
        ]
    )


def _array(kind: str, name: str, rows: list[str]) -> str:
    head = f'extern "C" {_HOST} const software_metal::{kind} software_metal_{name}[]'
    return head + " = {\n" + "".join(f"  {row},\n" for row in rows) + "};\n"
