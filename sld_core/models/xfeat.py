"""XFeat (Potje et al., CVPR 2024): its 64-channel stride-8 descriptor map, as a frozen feature
network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.models import weights
from sld_core.models.folding import FrozenConv, folded_conv

# strides of the convolutions of each block
STRIDES = {
    "block1": (1, 2, 1, 2),
    "block2": (1, 1),
    "block3": (2, 1, 1),
    "block4": (2, 1, 1),
    "block5": (2, 1, 1, 1),
    "block_fusion": (1, 1),
}
BN_EPS = 1e-5


class XFeat(nn.Module):
    """image_B3HW in 0..1, sides multiples of 32 -> features_BChw at stride 8, C = 64, each cell of
    unit length.

    Strided convolutions are padded by 1 as in training: the centre of cell j is pixel 8j (counted
    from 0)."""

    channels = 64

    def __init__(self):
        super().__init__()
        state = weights.load(weights.XFEAT)
        self.blocks = nn.ModuleDict()
        for name, strides in STRIDES.items():
            self.blocks[name] = nn.ModuleList()
            for i, stride in enumerate(strides):
                layer = f"{name}.{i}.layer."
                weight = state[layer + "0.weight"]
                self.blocks[name].append(
                    folded_conv(weight, state, layer + "1", BN_EPS, stride=stride)
                )
        self.skip = FrozenConv(state["skip1.1.weight"], state["skip1.1.bias"])
        self.last = FrozenConv(state["block_fusion.2.weight"], state["block_fusion.2.bias"])

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        gray = F.instance_norm(image_B3HW.mean(1, keepdim=True)).to(self.last.weight.dtype)
        x1 = self._run("block1", gray)
        x2 = self._run("block2", x1 + self.skip(F.avg_pool2d(gray, 4)))
        x3 = self._run("block3", x2)
        x4 = self._run("block4", x3)
        x5 = self._run("block5", x4)
        for coarse in (x4, x5):
            x3 = x3 + F.interpolate(coarse, x3.shape[-2:], mode="bilinear")
        return F.normalize(self.last(self._run("block_fusion", x3)).float(), dim=1)

    def _run(self, name: str, x):
        for conv in self.blocks[name]:
            x = F.relu(conv(x), inplace=True)
        return x
