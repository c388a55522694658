"""Convolutions of frozen networks with their batch normalisation folded in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FrozenConv(nn.Module):
    """A convolution whose output i is centred on input pixel stride * i + side; zeros outside."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        stride: int = 1,
        side: int = 0,
        groups: int = 1,
    ):
        super().__init__()
        self.weight = nn.Parameter(
            weight.contiguous(memory_format=torch.channels_last), requires_grad=False
        )
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.groups = stride, groups
        half = weight.shape[2] // 2
        self.before, self.after = half - side, half + side

    def forward(self, x):
        if self.before == self.after:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.before, 1, self.groups)
        x = F.pad(x, (self.before, self.after, self.before, self.after))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)

    def randomise(self) -> None:
        """Random weights (He initialisation, torch's global generator) and no bias."""
        nn.init.kaiming_normal_(self.weight)
        nn.init.zeros_(self.bias)


def folded_conv(
    weight: torch.Tensor, state: dict[str, torch.Tensor], bn: str, eps: float, **kw
) -> FrozenConv:
    """The convolution by `weight` followed by the batch normalisation `bn` of `state` (affine or
    not), as one FrozenConv."""
    scale = (state[bn + ".running_var"] + eps).rsqrt()
    if bn + ".weight" in state:
        scale = scale * state[bn + ".weight"]
    bias = -state[bn + ".running_mean"] * scale + state.get(bn + ".bias", 0)
    return FrozenConv(weight * scale[:, None, None, None], bias, **kw)


def fold_normalisation(network: nn.Module) -> nn.Module:
    """Fold every batch normalisation of `network` (evaluation mode) into the convolution before it,
    in place."""
    for module in network.modules():
        names = list(module._modules)
        for before, after in zip(names, names[1:]):
            conv, norm = getattr(module, before), getattr(module, after)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return network
