"""Targets and losses checked by hand: where the Gaussian lies, what is left out, and what each loss
wants."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sld_core.config.scene import TargetConfig
from sld_core.models.heatmap_head import scores
from sld_core.training import targets
from sld_core.types import Visibility

LOSSES = ("squares", "focal", "softmax", "cells")
HIDDEN, VISIBLE, UNKNOWN = (torch.tensor(int(state), dtype=torch.uint8) for state in Visibility)


def render_one(x, y, visibility=VISIBLE, shape=(12, 12), **kw):
    target, weight = targets.render(
        torch.tensor([[[x, y]]], dtype=torch.float32), visibility.reshape(1, 1), shape, **kw
    )
    return target[0, 0], weight[0, 0]


def test_a_gaussian_about_the_exact_projection():
    target, weight = render_one(52.0, 28.0)  # the centre of cell (3, 6)
    assert target[3, 6] == 1 and (weight == 1).all()
    assert target[3, 7].item() == pytest.approx(math.exp(-0.5 * (8 / 20) ** 2))
    assert target[5, 4].item() == pytest.approx(math.exp(-0.5 * 2 * (16 / 20) ** 2))


@given(st.floats(0, 96), st.floats(0, 96), st.floats(3, 30), st.floats(0.05, 0.5))
def test_every_cell_is_the_gaussian_or_zero_below_the_floor(x, y, sigma, floor):
    target, _ = render_one(x, y, sigma_px=sigma, floor=floor)
    centre = (torch.arange(12) + 0.5) * 8
    square = (centre[None] - x) ** 2 + (centre[:, None] - y) ** 2
    exact = torch.exp(-square / (2 * sigma**2))
    assert torch.allclose(target[exact > floor + 1e-4], exact[exact > floor + 1e-4], atol=1e-4)
    assert (target[exact < floor - 1e-4] == 0).all()
    assert (
        target[square.sqrt() > targets.reach_px(TargetConfig(sigma_px=sigma, floor=floor)) + 1e-2]
        == 0
    ).all()


@pytest.mark.parametrize(
    "x, visibility, weight_expected",
    [
        (20.0, HIDDEN, 1.0),
        (math.nan, HIDDEN, 1.0),
        (20.0, UNKNOWN, 0.0),
        (math.nan, UNKNOWN, 0.0),
        (math.nan, VISIBLE, 0.0),
        (math.inf, VISIBLE, 0.0),
        (-5e3, VISIBLE, 1.0),
    ],
)
def test_what_is_not_seen_has_no_gaussian_and_what_is_not_known_no_weight(
    x, visibility, weight_expected
):
    target, weight = render_one(x, 20.0, visibility)
    assert (
        (target[weight > 0] == 0).all()
        and (weight == weight_expected).all()
        and torch.isfinite(target).all()
    )


def test_squares_by_hand():
    logits = torch.tensor([0.5, 1.0, -1.0, 3.0]).reshape(2, 1, 1, 2)
    target = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(2, 1, 1, 2)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0]).reshape(2, 1, 1, 2)
    assert targets.loss(logits, target, weight, "squares").item() == pytest.approx(
        (0.25 + 0 + 1 + 4) / 2
    )
    assert targets.loss(logits, target, weight, "squares", 10.0).item() == pytest.approx(
        (0.25 + 0 + 1 + 40) / 2
    )
    weight[1, 0, 0, 1] = 0
    assert targets.loss(logits, target, weight, "squares").item() == pytest.approx((0.25 + 1) / 2)


def test_cells_by_hand():
    """One cell, two landmarks of targets 0.6 and 0.2: they share 0.6 as 0.45 and 0.15, none gets
    0.4."""
    logits, target = (
        torch.tensor([1.0, -2.0]).reshape(1, 2, 1, 1),
        torch.tensor([0.6, 0.2]).reshape(1, 2, 1, 1),
    )
    log_p = torch.tensor([1.0, -2.0, 0.0]).log_softmax(0)
    by_hand = -(torch.tensor([0.45, 0.15, 0.4]) * log_p).sum()
    assert targets.loss(logits, target, torch.ones(1, 2, 1, 1), "cells").item() == pytest.approx(
        by_hand.item()
    )
    # without the second, the first and none have it all
    weight = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    log_p = torch.tensor([1.0, 0.0]).log_softmax(0)
    by_hand = -(torch.tensor([0.6, 0.4]) * log_p).sum()
    assert targets.loss(logits, target, weight, "cells").item() == pytest.approx(
        by_hand.item(), rel=1e-5
    )


def test_softmax_of_an_empty_heatmap_wants_none():
    logits = torch.tensor([[1.0, -1.0]]).reshape(1, 1, 1, 2)
    by_hand = math.log(1 + math.exp(1) + math.exp(-1))
    assert targets.loss(
        logits, torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), "softmax"
    ).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_left_out_has_no_gradient(kind):
    xy, visibility = torch.full((1, 2, 2), 40.0), torch.stack([VISIBLE, UNKNOWN])[None]
    target, weight = targets.render(xy, visibility, (12, 12))
    logits = torch.randn(1, 2, 12, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets.loss(logits, target, weight, kind, 5.0).backward()
    assert logits.grad[0, 0].abs().sum() > 0 and logits.grad[0, 1].abs().max() == 0


@pytest.mark.parametrize("kind", LOSSES)
def test_descending_a_loss_makes_scores_like_the_target(kind):
    """Free heatmaps of two landmarks apart and a hidden one: each learned peak is where the
    landmark is, the hidden one has none."""
    xy = torch.tensor([[[22.0, 30.0], [75.0, 60.0], [40.0, 40.0]]])
    target, weight = targets.render(
        xy, torch.stack([VISIBLE, VISIBLE, HIDDEN])[None], (12, 12), sigma_px=8.0
    )
    logits = torch.zeros(1, 3, 12, 12, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(150):
        optimizer.zero_grad()
        targets.loss(logits, target, weight, kind).backward()
        optimizer.step()
    score = scores(logits.detach(), kind)[0]
    assert score[:2].flatten(1).argmax(1).tolist() == [
        3 * 12 + 2,
        7 * 12 + 9,
    ]  # the cells that hold them
    assert (
        score[:2].flatten(1).amax(1).min() > 0.6
        and score[2].max() < 0.1
        and score.min() >= 0
        and score.max() <= 1
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_is_a_mean_over_patches(kind):
    generator = torch.Generator().manual_seed(0)
    logits, target = (
        torch.randn(1, 3, 4, 4, generator=generator),
        torch.rand(1, 3, 4, 4, generator=generator),
    )
    one = targets.loss(logits, target, torch.ones_like(target), kind)
    three = targets.loss(
        *(t.repeat(3, 1, 1, 1) for t in (logits, target, torch.ones_like(target))), kind
    )
    assert three.item() == pytest.approx(one.item(), rel=1e-5)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="there are squares"):
        targets.loss(*torch.zeros(3, 1, 1, 1, 1), "cubes")


def test_unknown_landmarks_that_a_patch_cannot_show_are_hidden_in_it():
    reach = targets.reach_px(TargetConfig(sigma_px=8.0, floor=0.1))
    xy_BL2 = torch.tensor(
        [
            [
                [48.0, 48.0],
                [96 + reach + 1, 40.0],
                [96 + reach - 1, 40.0],
                [30.0, -500.0],
                [30.0, -500.0],
            ]
        ]
    )
    visibility_BL = torch.stack([UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, VISIBLE])[None]
    found = targets.hidden_outside(xy_BL2, visibility_BL, 96, TargetConfig(sigma_px=8.0, floor=0.1))
    assert found.dtype == torch.uint8 and found[0].tolist() == [
        Visibility.UNKNOWN,
        Visibility.HIDDEN,
        Visibility.UNKNOWN,
        Visibility.HIDDEN,
        Visibility.VISIBLE,
    ]
