"""The frozen, scene-agnostic backbones: image_B3HW in 0..1 -> features_BChw at stride 8."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sld_core.heatmap import grid_size
from sld_core.models.folding import FrozenConv
from sld_core.models.lite0 import Lite0
from sld_core.models.weights import LITE0, XFEAT, WeightsFile
from sld_core.models.xfeat import XFeat
from sld_core.types import SldError

ALIGNMENT_PX = 32  # image sides are padded to this


class Joined(nn.Module):
    """Lite0 and XFeat side by side."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Lite0(), XFeat()])

    def forward(self, image_B3HW):
        return torch.cat([p(image_B3HW).float() for p in self.parts], 1)


@dataclass(frozen=True)
class BackboneKind:
    """A network, its output channels and the weights files it is made of."""

    network: type[nn.Module]
    channels: int
    files: tuple[WeightsFile, ...]


BACKBONES = {
    "lite0": BackboneKind(Lite0, Lite0.channels, (LITE0,)),
    "xfeat": BackboneKind(XFeat, XFeat.channels, (XFEAT,)),
    "lite0+xfeat": BackboneKind(Joined, Lite0.channels + XFeat.channels, (LITE0, XFEAT)),
}


def weights_sha256(name: str) -> str:
    """One hash for all weights of the backbone `name`; a scene file refuses another."""
    return hashlib.sha256("".join(f.sha256 for f in BACKBONES[name].files).encode()).hexdigest()


@lru_cache
def conv_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively (twice as fast, same accuracy), else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return torch.float32
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


class Backbone(nn.Module):
    """A frozen backbone by name; takes images of any size and returns one feature per cell of heatmap.grid_size."""

    def __init__(self, name: str):
        super().__init__()
        if name not in BACKBONES:
            raise SldError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
        self.name, self.channels = name, BACKBONES[name].channels
        self.network = BACKBONES[name].network().eval().to(memory_format=torch.channels_last)
        for module in self.network.modules():
            if isinstance(module, FrozenConv):
                module.to(conv_dtype())

    @property
    def device(self) -> str:
        return str(next(self.parameters()).device)

    @torch.inference_mode()
    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        height, width = image_B3HW.shape[-2:]
        pad = (0, -width % ALIGNMENT_PX, 0, -height % ALIGNMENT_PX)
        if any(pad):
            image_B3HW = F.pad(image_B3HW, pad, mode="replicate")
        h, w = grid_size(height, width)
        return self.network(image_B3HW.contiguous(memory_format=torch.channels_last))[..., :h, :w].float()

    def features(self, image_HW3: np.ndarray, device: str = "cpu") -> torch.Tensor:
        """features_Chw of one uint8 RGB image."""
        image = torch.from_numpy(np.ascontiguousarray(image_HW3)).to(device).permute(2, 0, 1)[None].float() / 255
        return self(image)[0]
