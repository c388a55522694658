"""EfficientNet-Lite0 (Tan and Le 2019, Lite variant) up to its last stride-16 stage, as a frozen
feature network.

A strided convolution may read pixel 2i or 2i+1 as the centre of output i. The sides are chosen so
that the grid of every stage stays close to the stride-8 cells. With pixels counted from 0 the
centres are 4k+3 at stride 4, 8j+3 at stride 8 and 16i+3 at stride 16 (cell centre: 8j+3.5): even
cells of the stride-8 grid coincide with the stride-16 grid, and odd ones lie midway."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.models import weights
from sld_core.models.folding import folded_conv

# expansion, stride, blocks, and side: the centre of output i is input pixel 2i + side
STAGES = ((1, 1, 1, 0), (6, 2, 2, 1), (6, 2, 2, 0), (6, 2, 3, 0), (6, 1, 3, 0))
BN_EPS = 1e-3


class Lite0(nn.Module):
    """image_B3HW in 0..1, sides multiples of 16 -> features_BChw at stride 8, C = 328: stride-4
    stage as 2x2 blocks (96), stride 8 (40), both stride-16 stages up-sampled (80 + 112)."""

    channels = 328

    def __init__(self):
        super().__init__()
        state = weights.load(weights.LITE0)
        self.stem = _conv(state, "_conv_stem", "_bn0", stride=2, side=1)
        self.stages = nn.ModuleList()
        index = 0
        for expansion, stride, repeats, side in STAGES:
            blocks = [_block(state, index, expansion, stride, side)]
            for i in range(index + 1, index + repeats):
                blocks.append(_block(state, i, expansion, skip=True))
            self.stages.append(nn.Sequential(*blocks))
            index += repeats
        self.register_buffer("mean", torch.tensor(127.0 / 255))
        self.register_buffer("std", torch.tensor(128.0 / 255))

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        image = ((image_B3HW - self.mean) / self.std).to(self.stem.weight.dtype)
        x = F.relu6(self.stem(image), inplace=True)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        _, s4, s8, s16a, s16b = maps
        s16 = upsample_even(torch.cat([s16a, s16b], 1))
        return torch.cat([F.pixel_unshuffle(s4, 2), s8, s16], 1)


def _block(
    state: dict[str, torch.Tensor],
    index: int,
    expansion: int,
    stride: int = 1,
    side: int = 0,
    skip: bool = False,
) -> InvertedResidual:
    block = f"_blocks.{index}."
    parts = [_conv(state, block + "_expand_conv", block + "_bn0")] if expansion > 1 else []
    depthwise = dict(stride=stride, side=side, groups=len(state[block + "_bn1.bias"]))
    parts.append(_conv(state, block + "_depthwise_conv", block + "_bn1", **depthwise))
    parts.append(_conv(state, block + "_project_conv", block + "_bn2"))
    return InvertedResidual(parts, skip)


def _conv(state: dict[str, torch.Tensor], name: str, bn: str, **how) -> nn.Module:
    return folded_conv(state[name + ".weight"], state, bn, BN_EPS, **how)


class InvertedResidual(nn.Module):
    """Expansion, depthwise and projection convolutions, with ReLU6 after all but the last."""

    def __init__(self, parts: list[nn.Module], skip: bool):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.skip = skip

    def forward(self, x):
        y = x
        for part in self.parts[:-1]:
            y = F.relu6(part(y), inplace=True)
        y = self.parts[-1](y)
        return x + y if self.skip else y


def upsample_even(x_BChw: torch.Tensor) -> torch.Tensor:
    """Twice as large: sample i goes to 2i, the mean of i and i+1 to 2i+1 (the last one repeats)."""
    for dim in (2, 3):
        rest, last = x_BChw.narrow(dim, 1, x_BChw.shape[dim] - 1), x_BChw.narrow(dim, -1, 1)
        between = (x_BChw + torch.cat([rest, last], dim)) / 2
        x_BChw = torch.stack([x_BChw, between], dim + 1).flatten(dim, dim + 1)
    return x_BChw
