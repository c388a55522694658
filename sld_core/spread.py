"""Thinning long lists: which frames of a drive stand for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of `items`, evenly spread from the first to the last, in order, each once.
    `spread(range(n), count)` gives indices."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, max(count, 0)).round().astype(int)]
