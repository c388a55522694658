"""The backbones that all scenes share: image_B3HW in 0..1 -> features_BChw at stride 8, frozen for
a scene or to be trained on many scenes.

`weights` is always one of
    ""          the network's own: installed with sld, or downloaded from torchvision's server
    "imagenet"  the same, but an error for networks whose own weights are not ImageNet's
    "random"    random, from a seed
    a path      a file of `save_weights`, or, for networks of torchvision, a checkpoint of the
                whole network"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sld_core.heatmap import grid_size
from sld_core.models import weights as files
from sld_core.models.folding import FrozenConv, fold_normalisation
from sld_core.models.lite0 import Lite0
from sld_core.models.precision import conv_dtype
from sld_core.models.torchvision_networks import ImageNetNetwork, efficientnet, resnext, swin
from sld_core.models.weights import LITE0, XFEAT, WebFile, WeightsFile
from sld_core.models.xfeat import XFeat
from sld_core.types import SldError

ALIGNMENT_PX = 32  # image sides are padded to this
IMAGENET, RANDOM = "imagenet", "random"
COUNTER = "num_batches_tracked"  # of a batch normalisation


class Joined(nn.Module):
    """Lite0 and XFeat side by side."""

    channels = Lite0.channels + XFeat.channels

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Lite0(), XFeat()])

    def forward(self, image_B3HW):
        return torch.cat([p(image_B3HW).float() for p in self.parts], 1)


@dataclass(frozen=True)
class BackboneKind:
    """How a network is made, its output channels, and the files of its own weights. `network` loads
    its WeightsFiles itself; a WebFile is loaded afterwards."""

    network: Callable[[], nn.Module]
    channels: int
    files: tuple[WeightsFile | WebFile, ...]


def _web(file: str, channels: int, network: Callable[..., nn.Module], *how) -> BackboneKind:
    url = "https://download.pytorch.org/models/" + file
    return BackboneKind(partial(network, *how), channels, (WebFile(url),))


RESNEXT = "resnext101_32x8d-110c445d.pth"  # IMAGENET1K_V2
KINDS = {  # of every name in config.scene.BACKBONES
    "lite0": BackboneKind(Lite0, Lite0.channels, (LITE0,)),
    "xfeat": BackboneKind(XFeat, XFeat.channels, (XFEAT,)),
    "lite0+xfeat": BackboneKind(Joined, Joined.channels, (LITE0, XFEAT)),
    "resnext101": _web(RESNEXT, 512, resnext, 4),
    "resnext101-layer3": _web(RESNEXT, 512, resnext, 3),
    "resnext101-layer2": _web(RESNEXT, 512, resnext, 2),
    "efficientnet-b0": _web("efficientnet_b0_rwightman-7f5810bc.pth", 328, efficientnet, "b0"),
    "efficientnet-b1": _web("efficientnet_b1-c27df63c.pth", 328, efficientnet, "b1"),
    "efficientnet-b2": _web("efficientnet_b2_rwightman-c35c1473.pth", 352, efficientnet, "b2"),
    "efficientnet-b3": _web("efficientnet_b3_rwightman-b3899882.pth", 408, efficientnet, "b3"),
    "efficientnet-b4": _web("efficientnet_b4_rwightman-23ab8bcd.pth", 456, efficientnet, "b4"),
    "swin-t": _web("swin_t-704ceda3.pth", 192, swin),
}


class Backbone(nn.Module):
    """A frozen backbone by name: image_B3HW in 0..1, of any size -> features_BChw float32, one for
    each cell of heatmap.grid_size."""

    def __init__(self, name: str, weights: str = ""):
        super().__init__()
        self.name, self.weights, self.channels = name, weights, _kind(name).channels
        network = _network(name, weights, seed=0).requires_grad_(False).eval()
        self.network = network.to(memory_format=torch.channels_last)
        for module in self.network.modules():
            if isinstance(module, ImageNetNetwork):
                fold_normalisation(module.body)
        self._to_precision()

    def to(self, *args, **kwargs) -> Backbone:
        """As for any module; then chooses the precision of convolutions for that device."""
        super().to(*args, **kwargs)
        self._to_precision()
        return self

    def _to_precision(self) -> None:
        dtype = conv_dtype(torch.device(self.device).type)
        for module in self.network.modules():
            if isinstance(module, ImageNetNetwork):
                module.body.to(dtype)
            elif isinstance(module, FrozenConv):
                module.to(dtype)

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
        features = self.network(image_B3HW.contiguous(memory_format=torch.channels_last))
        return features[..., :h, :w].float()

    def features(self, image_HW3: np.ndarray, device: str = "cpu") -> torch.Tensor:
        """features_Chw of one uint8 RGB image."""
        image = torch.from_numpy(np.ascontiguousarray(image_HW3)).to(device)
        return self(image.permute(2, 0, 1)[None].float() / 255)[0]


def trainable(name: str, weights: str = "", seed: int = 0) -> nn.Module:
    """The network of `Backbone` in float32 with gradients: image_B3HW in 0..1, sides multiples of
    32 -> features_BChw. `seed` is that of random weights.

    Lite0 and XFeat are trained without batch normalisation: it is folded into their
    convolutions."""
    return _network(name, weights, seed).float().requires_grad_(True)


def save_weights(network: nn.Module, name: str, path: Path, record: dict) -> None:
    """Write the weights of a `trainable` network and a record of its training to a file that can
    be passed as `weights`."""
    files.write(network.state_dict(), {"backbone": name, "record": json.dumps(record)}, path)


def weights_sha256(name: str, weights: str = "") -> str:
    """One hash over all weights of the backbone `name`; a scene works with these weights only."""
    own = _kind(name).files
    if weights == RANDOM:
        return hashlib.sha256(f"{RANDOM} {name}".encode()).hexdigest()
    if weights not in ("", IMAGENET):
        return files.sha256_of(Path(weights))
    if isinstance(own[0], WebFile):
        return files.sha256_of(files.fetch(own[0]))
    return hashlib.sha256("".join(f.sha256 for f in own).encode()).hexdigest()


def _kind(name: str) -> BackboneKind:
    if name not in KINDS:
        raise SldError(f"no backbone {name!r}; there are {', '.join(KINDS)}")
    return KINDS[name]


def _network(name: str, weights: str, seed: int) -> nn.Module:
    kind = _kind(name)
    if weights == IMAGENET and XFEAT in kind.files:
        raise SldError(
            f"backbone {name} has no ImageNet weights; leave weights empty for its own, or pass "
            "random or the path of a file"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind.network()
        if weights == RANDOM:
            for module in network.modules():
                if isinstance(module, FrozenConv):
                    module.randomise()
            return network
    own = kind.files[0]
    if weights not in ("", IMAGENET):
        _load(network, name, Path(weights))
    elif isinstance(own, WebFile):
        _load(network, name, files.fetch(own))
    return network


def _load(network: nn.Module, name: str, path: Path) -> None:
    """Fill the network from a file of `save_weights`, or its body from a checkpoint of the whole
    network it was cut from."""
    state, text = files.read(path)
    ours = "backbone" in text
    if ours and text["backbone"] != name:
        raise SldError(
            f"{path}: weights of backbone {text['backbone']!r}, expected {name!r}; name that "
            "backbone or other weights"
        )
    if not ours and not isinstance(network, ImageNetNetwork):
        raise SldError(
            f"{path}: not made by sld (no backbone is named in it); backbone {name} takes "
            "weights of `sld train backbone` only"
        )
    target = network if ours else network.body
    wanted = target.state_dict()
    # no checkpoint has our 1x1 convolution, and old ones do not count batches
    known = [k for k in wanted if k in state]
    needed = [k for k in wanted if ours or not (k.startswith("reduce.") or k.endswith(COUNTER))]
    misfits = [f"{k} has another shape" for k in known if state[k].shape != wanted[k].shape]
    misfits += [f"{k} is not in it" for k in needed if k not in state]
    if misfits:
        raise SldError(
            f"{path}: not weights of backbone {name} ({misfits[0]}); expected a file of `sld train "
            "backbone` or a checkpoint of torchvision's network"
        )
    target.load_state_dict(wanted | {k: state[k] for k in known})
