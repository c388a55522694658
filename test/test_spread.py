import pytest

from sld_core.spread import spread


def test_both_ends_are_kept_and_the_rest_is_evenly_spread():
    assert spread(range(9), 3) == [0, 4, 8]
    assert spread("abcde", 2) == ["a", "e"]


@pytest.mark.parametrize(
    "items, count, expected",
    [([], 5, []), ([1, 2, 3], 9, [1, 2, 3]), ([1, 2, 3], 3, [1, 2, 3]), ([1, 2, 3], 1, [1])],
)
def test_few_items_and_small_counts(items, count, expected):
    assert spread(items, count) == expected


def test_none_are_asked_for():
    assert spread(range(5), 0) == []


def test_no_index_comes_twice():
    for n in range(1, 40):
        for count in range(1, 45):
            chosen = spread(range(n), count)
            assert len(set(chosen)) == len(chosen) == min(n, count)
