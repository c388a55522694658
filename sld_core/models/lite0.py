"""EfficientNet-Lite0 (Tan and Le 2019, Lite variant) up to its last stride-16 stage, as a frozen
feature network.

Only strides and padding are free here: a strided convolution reads pixel 2i or 2i+1 as the centre
of output i. The sides are chosen so that every stage's grid stays close to the stride-8 cells: with
pixels counted from 0 the centres are 4k+3 at stride 4, 8j+3 at stride 8 and 16i+3 at stride 16
(cell centre: 8j+3.5), so that even cells of the stride-8 grid coincide with the stride-16 grid and
odd ones lie midway."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.models import weights
from sld_core.models.folding import folded_conv

# (expansion, kernel, stride, output channels, repeats, centre of output i in input pixels: 2i +
# side)
STAGES = (
    (1, 3, 1, 16, 1, 0),
    (6, 3, 2, 24, 2, 1),
    (6, 5, 2, 40, 2, 0),
    (6, 3, 2, 80, 3, 0),
    (6, 5, 1, 112, 3, 0),
)
BN_EPS = 1e-3


class Lite0(nn.Module):
    """image_B3HW in 0..1, sides multiples of 16 -> features_BChw at stride 8, C = 328: stride-4
    stage as 2x2 blocks (96), stride 8 (40), both stride-16 stages up-sampled (80 + 112)."""

    channels = 328

    def __init__(self):
        super().__init__()
        state = weights.load(weights.LITE0)
        conv = lambda prefix, bn, **kw: folded_conv(
            state[prefix + ".weight"], state, bn, BN_EPS, **kw
        )
        self.stem = conv("_conv_stem", "_bn0", stride=2, side=1)
        blocks, index = [], 0
        for expansion, kernel, stride, _, repeats, side in STAGES:
            stage = []
            for repeat in range(repeats):
                p = f"_blocks.{index}."
                s = stride if repeat == 0 else 1
                parts = [conv(p + "_expand_conv", p + "_bn0")] if expansion > 1 else []
                parts += [
                    conv(
                        p + "_depthwise_conv",
                        p + "_bn1",
                        stride=s,
                        side=side if s == 2 else 0,
                        groups=len(state[p + "_bn1.bias"]),
                    ),
                    conv(p + "_project_conv", p + "_bn2"),
                ]
                stage.append(InvertedResidual(parts, skip=repeat > 0))
                index += 1
            blocks.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(blocks)
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


class InvertedResidual(nn.Module):
    """Expansion, depthwise and projection convolutions; ReLU6 after all but the last."""

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

    def double(x, dim):
        following = torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), x.narrow(dim, -1, 1)], dim)
        return torch.stack([x, (x + following) / 2], dim + 1).flatten(dim, dim + 1)

    return double(double(x_BChw, 2), 3)
