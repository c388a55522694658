"""ResNeXt-101 32x8d (Xie et al., CVPR 2017) at stride 8: the paper's backbone.

The strides of layer3 and layer4 become 1 and their 3x3 convolutions are dilated by 2 and 4, so that
pretrained weights see what they were trained on. A 1x1 convolution reduces layer3's 1024 or
layer4's 2048 channels to 512; layer2 ends at stride 8 with 512 channels and needs none. No
pretrained file has that convolution: it starts as a random projection onto orthonormal directions,
which roughly keeps the angles between features.

Weights: torchvision's ImageNet; or, by path, the weakly supervised WSL checkpoint (licence CC-BY-NC
4.0, not for commercial use) https://download.pytorch.org/models/ig_resnext101_32x8-c38310e5.pth."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sld_core.models.imagenet import ImageNetNetwork

CHANNELS = 512
WIDTHS = {2: 512, 3: 1024, 4: 2048}


def resnext(last_layer: int) -> ImageNetNetwork:
    """Up to layer2, layer3 or layer4 with random weights (of torch's global generator)."""
    # takes a second to import, and the default backbone does not need it
    from torchvision.models import resnext101_32x8d

    whole = resnext101_32x8d(replace_stride_with_dilation=[False, True, True])
    names = ["conv1", "bn1", "relu", "maxpool", *(f"layer{n}" for n in range(1, last_layer + 1))]
    parts = OrderedDict((name, getattr(whole, name)) for name in names)
    if last_layer > 2:
        parts["reduce"] = nn.Conv2d(WIDTHS[last_layer], CHANNELS, 1)
        nn.init.orthogonal_(parts["reduce"].weight)
        nn.init.zeros_(parts["reduce"].bias)
    return ImageNetNetwork(nn.Sequential(parts), CHANNELS)
