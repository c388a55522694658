"""EfficientNet B0 to B4 (Tan and Le, ICML 2019) of torchvision as features at stride 8.

The features are those of Lite0: the stride-4 stage as 2x2 blocks, the stride-8 stage, and both
stride-16 stages up-sampled. Setting strides to 1 instead, as SLD* does, takes three to five times
as long at stride 16 already, and for Lite0 the up-sampled stride-16 stages match better than the
stride-8 stage alone. The two stages at stride 32 are left out: they tell classes, not places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.models.imagenet import ImageNetNetwork

TAPS = (2, 3, 4, 5)  # stages, of strides 4, 8, 16, 16


def efficientnet(letter: str) -> ImageNetNetwork:
    """B0 to B4 with random weights (of torch's global generator)."""
    import torchvision

    whole = getattr(torchvision.models, f"efficientnet_{letter}")()
    s4, s8, s16a, s16b = (whole.features[i][-1].out_channels for i in TAPS)
    return ImageNetNetwork(Pyramid(whole.features[: TAPS[-1] + 1]), 4 * s4 + s8 + s16a + s16b)


class Pyramid(nn.Module):
    """Stages of several strides as one map at stride 8."""

    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = []
        for stage in self.features:
            x = stage(x)
            maps.append(x)
        s4, s8, s16a, s16b = (maps[i] for i in TAPS)
        s16 = F.interpolate(torch.cat([s16a, s16b], 1), scale_factor=2, mode="bilinear")
        return torch.cat([F.pixel_unshuffle(s4, 2), s8, s16], 1)
