"""A backbone for benchmarks that localize the same queries with many heads."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening


class CachedBackbone:
    """A backbone that keeps the features of every image in float16, whitened if `whitening` is
    given."""

    def __init__(self, backbone: Backbone, whitening: Whitening | None = None):
        self.backbone, self.whitening = backbone, whitening
        self._features: dict[bytes, torch.Tensor] = {}

    @property
    def channels(self) -> int:
        whitening = self.whitening
        return self.backbone.channels if whitening is None else len(whitening.matrix)

    def to(self, device: str) -> CachedBackbone:
        return self

    def features(self, image_HW3: np.ndarray, device: str) -> torch.Tensor:
        """features_Chw (float32) of one uint8 RGB image."""
        key = hashlib.sha1(np.ascontiguousarray(image_HW3)).digest() + str(image_HW3.shape).encode()
        if key not in self._features:
            features_Chw = self.backbone.features(image_HW3, device)
            if self.whitening is not None:
                white_NC = self.whitening(features_Chw.flatten(1).T)
                features_Chw = white_NC.T.unflatten(1, features_Chw.shape[1:])
            self._features[key] = features_Chw.half()
        return self._features[key].float()
