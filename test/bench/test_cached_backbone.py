"""The backbone of benchmarks computes each image once."""

import numpy as np
import torch

from sld_core.bench.cached_backbone import CachedBackbone
from sld_core.models.heads import Whitening


class Counting:
    """A backbone whose only channel is the image's first one, in cells of a pixel."""

    calls = 0

    def features(self, image_HW3, device):
        self.calls += 1
        return torch.from_numpy(image_HW3[None, :, :, 0].astype(np.float32))


def test_each_image_is_computed_once():
    backbone, image = Counting(), np.full((2, 3, 3), 7, np.uint8)
    cached = CachedBackbone(backbone)
    first, again = cached.features(image, "cpu"), cached.features(image.copy(), "cpu")
    assert torch.equal(first, again) and (first == 7).all() and backbone.calls == 1
    assert cached.features(image.reshape(3, 2, 3), "cpu").shape == (1, 3, 2)  # the same bytes
    assert backbone.calls == 2


def test_features_are_whitened_where_asked():
    whitening = Whitening(1, 1)
    whitening.mean.fill_(5.0)
    whitening.matrix.fill_(0.5)
    cached = CachedBackbone(Counting(), whitening)
    assert (cached.features(np.full((2, 3, 3), 7, np.uint8), "cpu") == 1).all()
    assert cached.channels == 1
