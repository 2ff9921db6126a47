"""The exports trie of a Mach-O file: the names that dyld finds by looking a library up."""

from __future__ import annotations

from build_tools.binaries.reader import BoundedReader, Malformed, readable

MAX_NAME = 65_536
MAX_NAME_BYTES = 64 * 1024 * 1024


def export_trie(trie: BoundedReader) -> set[str]:
    """Return every name in the trie.

    A well-formed trie visits each node once, so a node that is met again is a loop or a lie.

    Raises:
        Malformed: A node or an edge lies outside, a node is met twice, a name is too long.

    """
    names: set[str] = set()
    seen = {0}
    pending = [(0, b"")]
    total = 0
    while pending:
        node, prefix = pending.pop()
        terminal, offset = _uleb(trie, node)
        total += len(prefix)
        if len(prefix) > MAX_NAME or total > MAX_NAME_BYTES:
            msg = "the exports trie spells names that are too long"
            raise Malformed(msg)
        if terminal:
            names.add(readable(prefix))
        offset += terminal
        (edges,) = trie.unpack("B", offset, "the exports trie")
        offset += 1
        for _ in range(edges):
            label = trie.terminated(offset, "an edge of the exports trie", MAX_NAME)
            offset += len(label) + 1
            child, offset = _uleb(trie, offset)
            if child in seen:
                msg = f"the exports trie visits its node at {child:#x} twice"
                raise Malformed(msg)
            seen.add(child)
            pending.append((child, prefix + label))
    return names


def _uleb(reader: BoundedReader, offset: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 63, 7):
        (byte,) = reader.unpack("B", offset, "a number of the exports trie")
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    msg = f"a number of the exports trie at {offset:#x} is too long"
    raise Malformed(msg)
