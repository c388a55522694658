"""Images that are missing, told by stamps: numbers by hand."""

import numpy as np
import pytest

from sld_ros.stamp_gaps import StampGaps

MS = 10**6


def gaps_of(stamps_ns):
    gaps = StampGaps()
    for stamp_ns in stamps_ns:
        gaps.add(int(stamp_ns))
    return gaps


def test_none_is_missing_of_an_even_camera():
    assert gaps_of(33 * MS * np.arange(100)).missing == 0


def test_trembling_stamps_are_not_serious():
    stamps = 33 * MS * np.arange(300) + np.random.default_rng(0).normal(0, 4 * MS, 300)
    assert not gaps_of(stamps).is_serious


@pytest.mark.parametrize(
    "lost, missing",
    [
        (lambda i: i % 3 == 0, 25),  # of 29 between the first and the last, 4 before it is sure
        (lambda i: 50 <= i < 60, 10),  # a burst
        (lambda i: i == 60, 1),
    ],
)
def test_lost_images_are_counted(lost, missing):
    gaps = gaps_of(50 * MS * i for i in range(90) if not lost(i))
    assert gaps.missing == missing and gaps.is_serious == (missing > 4)


def test_neither_a_pause_nor_a_loop_nor_a_slower_camera_counts():
    even = [50 * MS * i for i in range(30)]
    assert gaps_of([*even, *[s + 20_000 * MS for s in even]]).missing == 0
    assert gaps_of([*even, *even]).missing == 0
    slower = [*even, *[even[-1] + 100 * MS * i for i in range(1, 200)]]
    assert gaps_of(slower).missing == 29  # until half of the recent intervals are the new ones
