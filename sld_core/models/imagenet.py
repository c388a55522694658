"""What the networks of torchvision have in common: how they want their images.

Where their cells look: strided convolutions are padded alike on all sides, so that by geometry the
centre of cell j is pixel 8j (counted from 0), and random weights do look there. Training moves it
to the middle of the block of pixels that the cell stands for, 8j + 3.5: it did so for both networks
whose weights are at hand, by 4 px for Lite0 (padded to the other side, as in Tensorflow) and 3.5 px
for XFeat. Hence nothing is shifted here; it was not measured with ImageNet weights of these
networks."""

from __future__ import annotations

import torch
from torch import nn

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet's pixels in 0..1, red green blue


class ImageNetNetwork(nn.Module):
    """image_B3HW in 0..1 -> features_BChw, from a `body` that wants normalised images."""

    def __init__(self, body: nn.Module, channels: int):
        super().__init__()
        self.body, self.channels = body, channels
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return self.body(
            ((image_B3HW - self.mean) / self.std).to(next(self.body.parameters()).dtype)
        )
