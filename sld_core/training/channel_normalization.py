"""Backbone features scaled to mean 0 and standard deviation 1 per channel, for training heads."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

FLOOR = 1e-3  # of the mean deviation, so that channels that never change are not blown up


class ChannelNormalization(nn.Module):
    """A fixed shift and scale of each channel: features_BChw -> features_BChw."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        return (features_BChw.float() - self.mean) * self.scale


class NormalizedBackbone(nn.Module):
    """`network`, then a normalization of its channels as they were before training. Networks side
    by side differ in scale by hundreds; a scene's whitening removes that, training heads have none.
    The network itself is trained as it will be used, without the normalization."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.normalization = ChannelNormalization(network.channels)

    @torch.no_grad()
    def fit(self, images_B3HW: Iterable[torch.Tensor]) -> None:
        """Measure the channels on a few batches of images."""
        cells_NC = torch.cat(
            [self.network(image).movedim(1, -1).flatten(0, 2).double() for image in images_B3HW]
        )
        deviation = cells_NC.std(0)
        deviation = deviation.clamp_min(FLOOR * float(deviation.mean()) + 1e-12)
        self.normalization.mean.copy_(cells_NC.mean(0)[:, None, None])
        self.normalization.scale.copy_(1 / deviation[:, None, None])

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return self.normalization(self.network(image_B3HW))
