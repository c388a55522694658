"""What the networks of torchvision have in common: the normalisation of their images.

Where a cell looks: strided convolutions are padded alike on all sides, so by geometry the centre of
cell j is pixel 8j (counted from 0), and with random weights it is. Training moves it to the middle
of the pixels that the cell covers, 8j + 3.5: by 4 px for Lite0 (padded to the other side, as in
TensorFlow) and by 3.5 px for XFeat, whose weights are installed. So nothing is shifted here. It was
not measured with ImageNet weights of these networks."""

from __future__ import annotations

import torch
from torch import nn

# of ImageNet's pixels in 0..1: red, green, blue
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ImageNetNetwork(nn.Module):
    """image_B3HW in 0..1 -> features_BChw by a `body` that takes normalised images."""

    def __init__(self, body: nn.Module, channels: int):
        super().__init__()
        self.body, self.channels = body, channels
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        image_B3HW = (image_B3HW - self.mean) / self.std
        return self.body(image_B3HW.to(next(self.body.parameters()).dtype))
