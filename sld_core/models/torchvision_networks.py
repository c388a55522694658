"""Networks of torchvision as features at stride 8, with random weights (of torch's global
generator). Their names in a state dict are those of torchvision, after `body.`

Where a cell looks: strided convolutions are padded alike on all sides, so by geometry the centre of
cell j is pixel 8j (counted from 0), and with random weights it is. Training moves it to the middle
of the pixels that the cell covers, 8j + 3.5: by 4 px for Lite0 (padded to the other side, as in
TensorFlow) and by 3.5 px for XFeat, whose weights are installed. So nothing is shifted here. It was
not measured with ImageNet weights of these networks. The patches of Swin do not overlap, so its
centres are at 8j + 3.5 by geometry.

torchvision takes a second to import, and the default backbone does not need it."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

# of ImageNet's pixels in 0..1: red, green, blue
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
EFFICIENTNET_TAPS = (2, 3, 4, 5)  # stages, of strides 4, 8, 16, 16
RESNEXT_CHANNELS = 512
RESNEXT_WIDTHS = {2: 512, 3: 1024, 4: 2048}
SWIN_STAGES = 4  # of torchvision's list: patches, stage 1, merging, stage 2
SWIN_CHANNELS = 192


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


def resnext(last_layer: int) -> ImageNetNetwork:
    """ResNeXt-101 32x8d (Xie et al., CVPR 2017) up to layer2, layer3 or layer4: the paper's
    backbone.

    The strides of layer3 and layer4 become 1 and their 3x3 convolutions are dilated by 2 and 4, so
    that pretrained weights see what they were trained on. A 1x1 convolution reduces layer3's 1024
    or layer4's 2048 channels to 512; layer2 ends at stride 8 with 512 channels and needs none. No
    pretrained file has that convolution: it starts as a random projection onto orthonormal
    directions, which roughly keeps the angles between features.

    Weights: torchvision's ImageNet; or, by path, the weakly supervised WSL checkpoint (licence
    CC-BY-NC 4.0, not for commercial use)
    https://download.pytorch.org/models/ig_resnext101_32x8-c38310e5.pth."""
    from torchvision.models import resnext101_32x8d

    whole = resnext101_32x8d(replace_stride_with_dilation=[False, True, True])
    names = ["conv1", "bn1", "relu", "maxpool", *(f"layer{n}" for n in range(1, last_layer + 1))]
    parts = OrderedDict((name, getattr(whole, name)) for name in names)
    if last_layer > 2:
        parts["reduce"] = nn.Conv2d(RESNEXT_WIDTHS[last_layer], RESNEXT_CHANNELS, 1)
        nn.init.orthogonal_(parts["reduce"].weight)
        nn.init.zeros_(parts["reduce"].bias)
    return ImageNetNetwork(nn.Sequential(parts), RESNEXT_CHANNELS)


def efficientnet(letter: str) -> ImageNetNetwork:
    """EfficientNet B0 to B4 (Tan and Le, ICML 2019).

    The features are those of Lite0: the stride-4 stage as 2x2 blocks, the stride-8 stage, and both
    stride-16 stages up-sampled. Setting strides to 1 instead, as SLD* does, takes three to five
    times as long at stride 16 already, and for Lite0 the up-sampled stride-16 stages match better
    than the stride-8 stage alone. The two stages at stride 32 are left out: they tell classes, not
    places."""
    import torchvision

    stages = getattr(torchvision.models, f"efficientnet_{letter}")().features
    s4, s8, s16a, s16b = (stages[i][-1].out_channels for i in EFFICIENTNET_TAPS)
    body = Pyramid(stages[: EFFICIENTNET_TAPS[-1] + 1])
    return ImageNetNetwork(body, 4 * s4 + s8 + s16a + s16b)


def swin() -> ImageNetNetwork:
    """The first two stages of Swin-T (Liu et al., ICCV 2021). Attention works in windows of 7x7
    cells, so a cell near a window's border sees further to one side."""
    from torchvision.models import swin_t

    return ImageNetNetwork(ChannelsFirst(swin_t().features[:SWIN_STAGES]), SWIN_CHANNELS)


class Stages(nn.Module):
    """Some stages of a network, under the name that torchvision's checkpoints give them."""

    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.features = features


class Pyramid(Stages):
    """Stages of several strides as one map at stride 8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = []
        for stage in self.features:
            x = stage(x)
            maps.append(x)
        s4, s8, s16a, s16b = (maps[i] for i in EFFICIENTNET_TAPS)
        s16 = F.interpolate(torch.cat([s16a, s16b], 1), scale_factor=2, mode="bilinear")
        return torch.cat([F.pixel_unshuffle(s4, 2), s8, s16], 1)


class ChannelsFirst(Stages):
    """Stages that compute with channels last, as a map with channels first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).permute(0, 3, 1, 2)
