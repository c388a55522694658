"""The paper's heads: features_BChw of a backbone -> logits_BLhw, one heatmap per landmark."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.types import SldError

DILATIONS = (1, 2, 3, 4)


class TrainingHead(nn.Module):
    """The head of one scene while the backbone is trained: a 1x1 skip block and a 1x1 layer to the
    heatmaps. Where `dilated` (the paper's final variant), a dilated block of `width` comes first.
    features_BChw -> logits_BLhw."""

    def __init__(self, channels: int, landmarks: int, width: int, dilated: bool):
        super().__init__()
        inner = width if dilated else channels
        first = [DilatedBlock(channels, width)] if dilated else []
        self.layers = nn.Sequential(*first, SkipBlock(inner), heatmaps(inner, landmarks))

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return self.layers(features_BChw)


class PaperHead(nn.Module):
    """The paper's scene head: two stacked pairs of a dilated block and a 1x1 skip block, then a 1x1
    layer to the heatmaps. features_BChw -> logits_BLhw; each heatmap cell sees 17 x 17 cells of
    features."""

    def __init__(self, channels: int, landmarks: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            DilatedBlock(channels, width),
            SkipBlock(width),
            DilatedBlock(width, width),
            SkipBlock(width),
            heatmaps(width, landmarks),
        )

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return self.layers(features_BChw)


class DilatedBlock(nn.Module):
    """Four 3x3 convolutions of dilation 1, 2, 3, 4 side by side, each with a quarter of `width`,
    then ReLU; zeros outside the map."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        if width % len(DILATIONS):
            raise SldError(f"head of width {width}: expected a multiple of {len(DILATIONS)}")
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, width // len(DILATIONS), 3, padding=d, dilation=d)
            for d in DILATIONS
        )
        for branch in self.branches:
            _he_init(branch)

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return F.relu(torch.cat([branch(features_BChw) for branch in self.branches], 1))


class SkipBlock(nn.Module):
    """A 1x1 network of two layers whose input is added to its output, then ReLU. It starts as the
    identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        _he_init(self.first)
        self.second = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return F.relu(features_BChw + self.second(F.relu(self.first(features_BChw))))


def heatmaps(channels: int, landmarks: int) -> nn.Conv2d:
    """The last 1x1 layer. It starts near zero, because nearly every cell of nearly every heatmap is
    zero."""
    layer = nn.Conv2d(channels, landmarks, 1)
    nn.init.normal_(layer.weight, std=0.1 * channels**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


def _he_init(convolution: nn.Conv2d) -> None:
    """Weights with which a ReLU layer keeps the variance of its input (He et al. 2015)."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)


def scores(logits_BLhw: torch.Tensor, loss: str) -> torch.Tensor:
    """Scores in 0..1 (B, L, h, w) from logits that were trained with this loss of
    training.targets."""
    if loss == "squares":
        return logits_BLhw.clamp(0, 1)
    if loss == "focal":
        return logits_BLhw.sigmoid()
    if loss == "cells":  # in each cell a softmax over the landmarks and none, whose logit is 0
        return (logits_BLhw - F.softplus(logits_BLhw.logsumexp(1, keepdim=True))).exp()
    # "softmax": in each heatmap a softmax over the cells and none; the best cell gets the
    # probability that the landmark is in one
    flat = logits_BLhw.flatten(2)
    present = flat.logsumexp(2, keepdim=True).sigmoid()
    return (present * (flat - flat.amax(2, keepdim=True)).exp()).unflatten(2, logits_BLhw.shape[2:])
