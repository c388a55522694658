"""The first two stages of Swin-T (Liu et al., ICCV 2021) of torchvision: stride 8, 192 channels.

Patches do not overlap, so the centre of cell j is pixel 8j + 3.5, as it should be. Attention works
in windows of 7x7 cells, so a cell near a window's border sees further to one side."""

from __future__ import annotations

import torch
from torch import nn

from sld_core.models.imagenet import ImageNetNetwork

STAGES = 4  # of torchvision's list: patches, stage 1, merging, stage 2
CHANNELS = 192


def swin() -> ImageNetNetwork:
    """With random weights (of torch's global generator)."""
    from torchvision.models import swin_t

    return ImageNetNetwork(ChannelsFirst(swin_t().features[:STAGES]), CHANNELS)


class ChannelsFirst(nn.Module):
    """Stages that compute with channels last, as a map with channels first."""

    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).permute(0, 3, 1, 2)
