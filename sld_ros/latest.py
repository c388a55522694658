"""From the thread that receives images to the one that works on them: the newest alone."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds at most one item, always the newest: `put` replaces an item that was not taken yet."""

    def __init__(self):
        self._item: T | None = None
        self._changed = threading.Condition()
        self.closed = False
        self.replaced = 0

    def put(self, item: T) -> None:
        with self._changed:
            if self._item is not None:
                self.replaced += 1
            self._item = item
            self._changed.notify()

    def take(self) -> T | None:
        """Waits for an item; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self.closed)
            item = None if self.closed else self._item
            self._item = None
            return item

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()
