"""Pin another upstream commit, or say whether there is a newer one.

The new source is fetched and verified first; then what changed is shown: commits, files that our
repairs touch, functions of the ABI header. A lock whose repairs no longer apply is not written.
"""

from __future__ import annotations

import argparse

from build_tools.commands import common
from build_tools.source import lock as locks
from build_tools.source import overlay, pin
from build_tools.source.lock import Lock
from build_tools.source.pin import Proposal
from build_tools.support.console import printable, say, stdout
from build_tools.support.errors import UsageError

NEWER = 3
SHOWN = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``pin``."""
    parser.add_argument(
        "ref", nargs="?", default="HEAD", help="branch, tag or full commit hash (default: HEAD)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"only say whether REF is another commit than ours; exit status {NEWER} if so",
    )
    parser.add_argument("--why", metavar="TEXT", help="why this commit; written into the lock")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="the changed files that we repair have been read: write their new hashes",
    )
    parser.add_argument("--dry-run", action="store_true", help="show, and write nothing")
    common.add_source(parser)
    common.add_overlay(parser)


def run(args: argparse.Namespace) -> int:
    """Check, or show and write."""
    lock = locks.load(args.lock)
    whom = common.remotes_of(args)
    commit = pin.newest(lock, remotes=whom, ref=args.ref)
    if args.check:
        same = commit == lock.upstream.commit
        state = "is our pin" if same else f"is not our pin {lock.upstream.commit}"
        stdout.print(f"{args.ref} of {lock.upstream.url}: {commit} {state}")
        return 0 if same else NEWER
    if not args.dry_run and not args.why:
        msg = "--why TEXT is needed: the lock says why this commit and not another"
        raise UsageError(msg)
    repairs = overlay.load(args.overlay)
    proposal = pin.propose(
        lock,
        commit,
        repairs,
        why=args.why or lock.why,
        cache=args.cache,
        remotes=whom,
    )
    _show(lock, proposal)
    pin.require_fit(proposal, accept=args.accept_changes)
    if args.dry_run:
        say("nothing was written (--dry-run)")
        return 0
    if proposal.changed:
        overlay.accept(repairs, proposal.root)
        say(f"wrote the new hashes into {args.overlay / overlay.DATA}")
    locks.rewrite(args.lock, proposal.lock)
    then = ".venv/bin/python -m build_tools typecheck --write"
    say(f"wrote {args.lock}. Now: `{then}`, and the tests.")
    return 0


def _show(old: Lock, proposal: Proposal) -> None:
    for before, after in zip(old.repositories, proposal.lock.repositories, strict=True):
        name = after.path or proposal.lock.name
        if before.commit == after.commit:
            stdout.print(f"{name}: unchanged")
            continue
        stdout.print(f"{name}: {before.commit} -> {after.commit}")
        commits = proposal.commits.get(name, [])
        for line in commits[:SHOWN] or ["(no history to be had, or none between the two)"]:
            stdout.print(f"  {printable(line)}")
        if len(commits) > SHOWN:
            stdout.print(f"  and {len(commits) - SHOWN} more")
    for title, lines in (
        ("repaired files that changed", proposal.changed),
        ("repairs that no longer apply", proposal.misfits),
        ("functions that the header gained", proposal.added),
        ("functions that the header lost", proposal.removed),
    ):
        stdout.print(f"{title}: {len(lines) or 'none'}")
        for line in lines:
            stdout.print(f"  {printable(line)}")
