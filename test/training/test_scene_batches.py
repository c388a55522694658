"""Batches of many scenes: properties that hold for any scenes, and the exact position in a run."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sld_core.training.scene_batches import SceneBatches
from sld_core.types import SldError

scenes = st.lists(st.integers(1, 30), min_size=1, max_size=6)
batch = st.integers(1, 9)
seed = st.integers(0, 2**31 - 1)
order = st.sampled_from(["shuffled", "rounds"])


@given(scenes, batch, seed, st.integers(0, 3))
def test_an_epoch_is_every_image_of_every_scene_once_in_batches_of_one_scene(
    sizes, batch, seed, epoch
):
    steps = SceneBatches(sizes, batch, seed).steps(epoch)
    assert all(len(step) == 1 for step in steps)
    seen = Counter((b.scene, item) for (b,) in steps for item in b.items)
    assert seen == Counter(
        (scene, item) for scene, size in enumerate(sizes) for item in range(size)
    )
    for scene, size in enumerate(sizes):
        lengths = [len(b.items) for (b,) in steps if b.scene == scene]
        assert (
            len(lengths) == -(-size // batch)
            and max(lengths) <= batch
            and max(lengths) - min(lengths) <= 1
        )


@given(scenes, batch, seed, st.integers(0, 3))
def test_a_round_has_one_batch_of_each_scene_and_small_scenes_come_again(sizes, batch, seed, epoch):
    steps = SceneBatches(sizes, batch, seed, "rounds").steps(epoch)
    assert len(steps) == -(-max(sizes) // batch)
    assert all([b.scene for b in step] == list(range(len(sizes))) for step in steps)
    for scene, size in enumerate(sizes):
        times = Counter(item for step in steps for item in step[scene].items)
        assert set(times) == set(range(size)) and max(times.values()) - min(times.values()) <= 1


@given(scenes, batch, seed, order, st.integers(0, 60), st.integers(1, 20))
@settings(max_examples=60)
def test_a_restored_position_goes_on_with_the_same_batches(
    sizes, batch, seed, order, before, after
):
    one, other = (SceneBatches(sizes, batch, seed, order) for _ in range(2))
    for _ in range(before):
        one.next()
    state = one.state()
    assert (
        state["epoch"] == before // one.steps_per_epoch
        and state["position"] == before % one.steps_per_epoch
    )
    other.restore(state)
    assert [one.next() for _ in range(after)] == [other.next() for _ in range(after)]


def test_batches_are_shuffled_across_scenes_and_anew_in_every_epoch():
    batches = SceneBatches([40, 40, 40], 4, seed=1)
    first, second = (batches.steps(epoch) for epoch in (0, 1))
    order = [step[0].scene for step in first]
    assert (
        sum(a != b for a, b in zip(order, order[1:])) >= 10
    )  # of 29 neighbours; scene after scene would be 2
    assert first != second and {b.items for (b,) in first} != {b.items for (b,) in second}
    assert (
        first
        == SceneBatches([40, 40, 40], 4, seed=1).steps(0)
        != SceneBatches([40, 40, 40], 4, seed=2).steps(0)
    )


def test_every_scene_comes_first_equally_often():
    first = Counter(
        SceneBatches([8, 8], 4, seed=0).steps(epoch)[0][0].scene for epoch in range(200)
    )
    assert 70 < first[0] < 130  # of 200


@pytest.mark.parametrize(
    "sizes, batch, order",
    [([], 4, "shuffled"), ([3, 0], 4, "shuffled"), ([3], 0, "shuffled"), ([3], 1, "random")],
)
def test_what_cannot_be_batched_is_refused(sizes, batch, order):
    with pytest.raises(SldError, match="expected at least"):
        SceneBatches(sizes, batch, 0, order)


def test_a_position_of_other_scenes_is_refused():
    with pytest.raises(SldError, match="5 steps"):
        SceneBatches([20], 4, 0).restore({"epoch": 0, "position": 5})
