"""Say which kernel runs for one attention problem on this machine, and why.

What is not known yet is validated and measured first; with QWEN_MFA_TUNE=0, it is not.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qwen_mfa.cli.arguments import UsageError, whole
from qwen_mfa.cli.table import seconds
from qwen_mfa.problem import PRECISIONS, Problem
from qwen_mfa.selection import choose, removal
from qwen_mfa.transforms import padding
from qwen_mfa.transforms.padding import Pattern
from qwen_mfa.validation.variants import class_of, variant_of

if TYPE_CHECKING:
    from qwen_mfa.selection.candidates import Finding
    from qwen_mfa.selection.choose import Choice
    from qwen_mfa.selection.removal import Removal

_size = whole(1, 1 << 20)
MASKS = ("none", "causal", "bool", "additive")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    for name, text in (
        ("B", "batch"),
        ("H", "query heads"),
        ("SQ", "query rows"),
        ("SKV", "key rows"),
        ("D", "head dimension"),
    ):
        parser.add_argument(name, type=_size, help=text)
    parser.add_argument("DTYPE", choices=sorted(PRECISIONS))
    parser.add_argument("--mask", choices=MASKS, default="none")
    parser.add_argument(
        "--mask-shape",
        type=_shape,
        metavar="B,H,SQ,SKV",
        help="of a bool or additive mask (default 1,1,SQ,SKV)",
    )
    parser.add_argument(
        "--hidden",
        type=whole(0, 1 << 20),
        metavar="N",
        help="say, too, whether N padded keys that a mask 1,1,1,SKV hides are left out",
    )
    parser.add_argument("--heads-kv", type=_size, metavar="N", help="key heads (default H)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Decide and print. Exit status 2 for a problem that cannot be."""
    problem = _problem(args)
    pattern = _pattern(args.hidden, problem)
    choice = choose.choose(problem)
    found = None if pattern is None else removal.decide(problem, pattern)
    if args.json:
        print(json.dumps(as_json(problem, choice, found), indent=2))
    else:
        print(as_text(problem, choice, found))
    return 0


def removal_as_json(found: Removal) -> dict[str, Any]:
    """Return what is known of leaving padded keys out, as JSON values."""
    return {
        "removed": found.removed,
        "reason": found.reason,
        "measured": [{**asdict(x), "wins": x.wins} for x in found.samples],
    }


def as_json(problem: Problem, choice: Choice, found: Removal | None = None) -> dict[str, Any]:
    """Return everything that is known, as JSON values."""
    return {
        **({} if found is None else {"padding": removal_as_json(found)}),
        "problem": asdict(problem),
        "variant": variant_of(problem).key,
        "class": class_of(problem)[0],
        "kernel": choice.kernel.name,
        "reason": choice.reason,
        "candidates": [finding_as_json(finding) for finding in choice.findings],
    }


def finding_as_json(finding: Finding) -> dict[str, Any]:
    """Return what is known of one candidate, as JSON values."""
    return {
        "kernel": finding.kernel.name,
        "reason": finding.reason,
        "validation": None if finding.validation is None else asdict(finding.validation),
        "measured": [{**asdict(x), "wins": x.wins} for x in finding.samples],
    }


def as_text(problem: Problem, choice: Choice, found: Removal | None = None) -> str:
    """Lay everything out for people."""
    lines = [
        f"problem   {problem}",
        f"class     {class_of(problem)[0]}",
        f"runs      {choice.kernel.name}",
        f"because   {choice.reason}",
        *([] if found is None else _about_padding(found)),
    ]
    for finding in choice.findings:
        lines += ["", f"candidate {finding.kernel.name}"]
        result = finding.validation
        if result is None:
            lines.append(f"  {finding.reason}")
        elif not result.ok:
            lines.append(f"  validation failed: {result.reason}")
        else:
            lines.append(
                f"  validated: largest error {result.error:.1e}, {result.margin:.2f} of its bound"
            )
        lines += [
            f"  measured  {seconds(x.seconds)} against {seconds(x.seconds_mlx)} of MLX: {x}"
            for x in finding.samples
        ]
    return "\n".join(lines)


def _about_padding(found: Removal) -> list[str]:
    outcome = "left out; what is left is a problem of its own" if found.removed else "masked"
    return [f"padding   {outcome}", f"because   {found.reason}"]


def _pattern(hidden: int | None, problem: Problem) -> Pattern | None:
    """Return the pattern of ``hidden`` keys between text and image."""
    if hidden is None:
        return None
    if problem.mask_shape[:3] != (1, 1, 1) or problem.mask_shape[3] != problem.seq_kv:
        msg = (
            f"--hidden is of a mask that all queries share: add --mask-shape 1,1,1,{problem.seq_kv}"
        )
        raise UsageError(msg)
    if hidden >= problem.seq_kv:
        msg = f"--hidden {hidden}: there are {problem.seq_kv} keys, and one has to be left"
        raise UsageError(msg)
    if not padding.may_apply(problem):
        msg = (
            f"--hidden: masks of problems below {padding.MIN_FLOPS} operations or "
            f"{padding.MIN_QUERIES} queries stay, and are not looked at"
        )
        raise UsageError(msg)
    return Pattern(hidden=hidden, runs=2 if hidden else 1)


def _problem(args: argparse.Namespace) -> Problem:
    heads_kv = args.heads_kv or args.H
    if args.H % heads_kv:
        msg = f"{heads_kv} key heads do not divide {args.H} query heads"
        raise UsageError(msg)
    is_array = args.mask in {"bool", "additive"}
    if args.mask_shape is not None and not is_array:
        msg = "--mask-shape is of a mask: give --mask bool or --mask additive, too"
        raise UsageError(msg)
    full = (args.B, args.H, args.SQ, args.SKV)
    shape = args.mask_shape or (1, 1, args.SQ, args.SKV)
    if is_array and any(n not in (1, m) for n, m in zip(shape, full, strict=True)):
        msg = f"a mask of shape {shape} does not broadcast to {full}"
        raise UsageError(msg)
    return Problem(
        batch=args.B,
        heads_q=args.H,
        heads_kv=heads_kv,
        seq_q=args.SQ,
        seq_kv=args.SKV,
        head_dim=args.D,
        value_dim=args.D,
        dtype=args.DTYPE,
        mask=args.mask,
        mask_shape=shape if is_array else (),
    )


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(_size(word) for word in text.split(","))
    if len(sizes) != 4:
        msg = f"{text} does not have four sizes"
        raise argparse.ArgumentTypeError(msg)
    return sizes
