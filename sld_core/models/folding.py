"""Convolutions of frozen networks with their batch normalisation folded in."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class FrozenConv(nn.Module):
    """A convolution whose output i is centred on input pixel stride * i + side, zeros outside."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, side: int = 0,
                 groups: int = 1):
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.groups = stride, groups
        half = weight.shape[2] // 2
        self.before, self.after = half - side, half + side

    def forward(self, x):
        if self.before == self.after:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.before, 1, self.groups)
        x = F.pad(x, (self.before, self.after, self.before, self.after))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


def folded_conv(weight: torch.Tensor, state: dict[str, torch.Tensor], bn: str, eps: float, **kw) -> FrozenConv:
    """FrozenConv of `weight` followed by the batch normalisation `bn` of `state` (affine or not)."""
    scale = (state[bn + ".running_var"] + eps).rsqrt()
    if bn + ".weight" in state:
        scale = scale * state[bn + ".weight"]
    bias = -state[bn + ".running_mean"] * scale + state.get(bn + ".bias", 0)
    return FrozenConv(weight * scale[:, None, None, None], bias, **kw)
