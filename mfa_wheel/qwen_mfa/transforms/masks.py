"""Which masks are looked at, where looking may wait for a device.

What a mask hides is told by its contents alone: an array's memory can be written to, also by NumPy,
and `a[0] = x` puts other contents behind the same Python object. So nothing that is *removed* rests
on anything else: the contents are read at every call, which on an array that was evaluated before
takes less than a microsecond.

To read a mask that was not evaluated yet means to wait for the device, and nothing in MLX's Python
interface tells the two apart. A mask that a host makes once, for all blocks or for a whole picture,
costs one wait. One that it makes anew for every block would cost a wait per block: when
`MAX_NEW` masks in a row were new, further ones are left alone until one is seen twice.

That a mask *stays* is right whatever it holds. So the answer is remembered for the object, and the
mask looked at again only after `PATIENCE` calls: on NVIDIA GPUs, memory that host and device both
read travels each time. This is for devices other than the CPU; there, masks are always looked at.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

from qwen_mfa import forks

if TYPE_CHECKING:
    import mlx.core as mx

MAX_NEW = 3
PATIENCE = 64
MAX_REMEMBERED = 16  # positive and negative prompts of a few pictures


class _Seen:
    """A mask that came before; ``left`` calls more, it stays without being looked at."""

    __slots__ = ("left", "mask")

    def __init__(self, mask: mx.array) -> None:
        self.mask = weakref.ref(mask)
        self.left = 0


class Looks:
    """The masks of late, by object. Other threads' masks may be among them."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, _Seen] = OrderedDict()
        self._new = 0  # in a row
        self._lock = forks.lock()

    def staying(self, mask: mx.array) -> bool:
        """Whether ``mask`` stays, as it was found to not long ago; counted as one call."""
        seen = self._seen.get(id(mask))
        if seen is None or not seen.left or seen.mask() is not mask:
            return False
        seen.left -= 1
        self._new = 0
        return True

    def knows(self, mask: mx.array) -> bool:
        """Whether ``mask`` came before, so that it may be read; nothing changes if it did not."""
        seen = self._seen.get(id(mask))
        if seen is None or seen.mask() is not mask:
            return False
        self._new = 0
        return True

    def may_look(self, mask: mx.array) -> bool:
        """Whether to read ``mask``, although that may wait."""
        with self._lock:
            seen = self._seen.get(id(mask))
            # An address may be another array's by now.
            if seen is not None and seen.mask() is mask:
                self._seen.move_to_end(id(mask))
                self._new = 0
                return True
            self._seen[id(mask)] = _Seen(mask)
            if len(self._seen) > MAX_REMEMBERED:
                self._seen.popitem(last=False)
            self._new += 1
            return self._new <= MAX_NEW

    def stays(self, mask: mx.array) -> None:
        """Remember for a while that ``mask`` stays."""
        seen = self._seen.get(id(mask))
        if seen is not None and seen.mask() is mask:
            seen.left = PATIENCE
