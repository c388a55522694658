"""Heatmap targets and their losses: those of SLD* (Do and Sinha 2024), and better ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sld_core import heatmap
from sld_core.config.scene import TargetConfig
from sld_core.types import Visibility


def heatmap_loss(
    logits_BLhw: Tensor, xy_px_BL2: Tensor, visibility_BL: Tensor, config: TargetConfig
) -> Tensor:
    """The loss of heatmaps of landmarks at `xy_px_BL2` (see `render` and `loss`)."""
    shape_hw = logits_BLhw.shape[2:]
    target, weight = render(xy_px_BL2, visibility_BL, shape_hw, config.sigma_px, config.floor)
    return loss(logits_BLhw.float(), target, weight, config.loss, config.positive_weight)


def render(
    xy_px_BL2: Tensor,
    visibility_BL: Tensor,
    shape_hw: tuple[int, int],
    sigma_px: float = 20.0,
    floor: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Heatmaps target_BLhw in 0..1 and weight_BLhw (0: left out of the loss, else 1) of landmarks
    at `xy_px_BL2` (pixels, corner origin, any place).

    VISIBLE: a Gaussian around the exact projection, zero below `floor`. HIDDEN: all zero. UNKNOWN,
    and positions that are not finite unless HIDDEN: left out."""
    h, w = shape_hw
    visible, known = visibility_BL == Visibility.VISIBLE, xy_px_BL2.isfinite().all(-1)
    # a NaN would spread to the whole heatmap; a position far away gives an empty one
    xy = heatmap.pixel_to_cell(
        torch.where((visible & known)[..., None], xy_px_BL2, torch.full_like(xy_px_BL2, 1e6))
    )
    spread = -0.5 * (heatmap.STRIDE / sigma_px) ** 2
    x_BwL = (spread * (torch.arange(w, device=xy.device)[:, None] - xy[:, None, :, 0]) ** 2).exp()
    y_BhL = (spread * (torch.arange(h, device=xy.device)[:, None] - xy[:, None, :, 1]) ** 2).exp()
    # landmarks are innermost in memory, as in the logits of a channels_last network: this makes
    # the losses twice as fast
    target = F.threshold(y_BhL[:, :, None] * x_BwL[:, None], floor, 0.0).permute(0, 3, 1, 2)
    weight = ((visible & known) | (visibility_BL == Visibility.HIDDEN)).to(target.dtype)
    return target, weight[..., None, None].expand(target.shape)


def hidden_outside(
    xy_px_BL2: Tensor, visibility_BL: Tensor, side_px: int, config: TargetConfig
) -> Tensor:
    """The visibility of landmarks in patches of `side_px`: those UNKNOWN in the image are HIDDEN
    where their heatmap cannot reach the patch. Only those near the patch are left out of the loss
    (SLD*)."""
    reach = reach_px(config)
    outside_BL = ((xy_px_BL2 < -reach) | (xy_px_BL2 > side_px + reach)).any(2)
    return torch.where(
        outside_BL & (visibility_BL == Visibility.UNKNOWN), Visibility.HIDDEN, visibility_BL
    ).to(visibility_BL.dtype)


def reach_px(config: TargetConfig) -> float:
    """The distance from its landmark beyond which a target is zero."""
    if config.floor == 0:
        return math.inf
    return config.sigma_px * math.sqrt(-2 * math.log(config.floor))


def loss(
    logits_BLhw: Tensor,
    target_BLhw: Tensor,
    weight_BLhw: Tensor,
    kind: str,
    positive_weight: float = 1.0,
) -> Tensor:
    """The scalar loss of heatmaps: summed over each patch, averaged over the patches of the batch.

    At landmarks, the weight grows by (`positive_weight` - 1) times the target: of a thousand
    heatmaps all but a few are empty in each patch.

    "squares" is that of SLD*: squared differences of the raw output. "focal": sigmoid, cells that
    are nearly right count little. "softmax": each heatmap's cross-entropy over its cells and none.
    "cells": each cell's cross-entropy over landmarks and none."""
    batch = len(logits_BLhw)
    if kind == "squares":
        weight = weight_BLhw * (1 + (positive_weight - 1) * target_BLhw)
        return (weight * (logits_BLhw - target_BLhw) ** 2).sum() / batch
    if kind == "focal":
        return (weight_BLhw * focal(logits_BLhw, target_BLhw, positive_weight)).sum() / batch
    if kind == "softmax":
        known_BL = weight_BLhw[..., 0, 0]
        logits, target = logits_BLhw.flatten(2), target_BLhw.flatten(2)
        return (known_BL * cross_entropy(logits, target, 2, positive_weight)).sum() / batch
    if kind == "cells":
        logits = logits_BLhw + (weight_BLhw - 1) * 1e4
        return cross_entropy(logits, target_BLhw * weight_BLhw, 1, positive_weight).sum() / batch
    raise ValueError(f"no loss {kind!r}; there are squares, focal, softmax, cells")


def focal(logits: Tensor, target: Tensor, positive_weight: float) -> Tensor:
    """Each cell's cross-entropy against a soft target, times the squared difference of score and
    target (quality focal loss, Li et al. 2020)."""
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (1 + (positive_weight - 1) * target) * (target - logits.sigmoid()) ** 2 * each


def cross_entropy(logits: Tensor, target: Tensor, dim: int, positive_weight: float) -> Tensor:
    """Cross-entropy along `dim` over its entries and "none", whose logit is 0. The entries share
    the largest target in proportion to their own; "none" has what that leaves of 1."""
    top = target.amax(dim)
    share = top / target.sum(dim).clamp_min(1e-6)
    each = F.softplus(logits.logsumexp(dim)) - share * (target * logits).sum(dim)
    return (1 + (positive_weight - 1) * top) * each
