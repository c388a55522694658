"""Scene heads: features_BChw of the backbone -> heatmap.ScoreMaps. Which head it was matters to
nobody downstream."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.config.scene import HeadConfig, HeatmapConfig
from sld_core.heatmap import ScoreMaps
from sld_core.models.heatmap_head import PaperHead, scores
from sld_core.types import SldError

# widest and narrowest uncertainty of an offset, in cells (Laplace scale)
MIN_LOG_B, MAX_LOG_B = math.log(0.02), math.log(2.0)


WHITENING_FLOOR = 1e-3  # of the largest variance


def limited(free: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """`free` within limits, but with its gradient: what early steps throw beyond them would else
    never come back."""
    return free + (free.clamp(low, high) - free).detach()


class Whitening(nn.Module):
    """The linear projection of backbone features to decorrelated channels of unit variance (PCA),
    fitted on the scene."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("matrix", torch.zeros(outputs, inputs))

    @classmethod
    def fit(cls, features_NC: torch.Tensor, outputs: int) -> Whitening:
        """From at least `outputs` features."""
        out = cls(features_NC.shape[1], outputs)
        x = features_NC.double()
        mean, scale = (
            x.mean(0),
            x.std(0) + 1e-6,
        )  # networks side by side differ in scale by hundreds
        x = (x - mean) / scale
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        values, vectors = values.flip(0)[:outputs], vectors.flip(1)[:, :outputs]
        # the floor keeps directions that hold nothing but noise from being blown up
        out.mean.copy_(mean)
        out.matrix.copy_((vectors * (values + WHITENING_FLOOR * values[0]).rsqrt()).T / scale)
        return out

    def forward(self, features_NC: torch.Tensor) -> torch.Tensor:
        return (features_NC - self.mean) @ self.matrix.T


class CellHead(nn.Module):
    """Scores every cell against L landmarks and background by a 1x1 network, and says where in the
    cell the landmark is.

    Three ReLU-free outputs per cell beside the L + 1 logits: offset (x, y) in cells and log b of
    its Laplace error."""

    def __init__(self, channels: int, hidden: int, landmarks: int):
        super().__init__()
        self.first = nn.Linear(channels, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.classify = nn.Linear(hidden, landmarks + 1)  # the last one is background
        self.locate = nn.Linear(hidden, 3)

    def forward(self, cells_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, L + 1) and located (N, 3) = (x, y, log b) of whitened features."""
        x = F.relu(self.first(cells_NC))
        x = F.relu(self.second(x))
        return self.classify(x), self.locate(x)


class PrototypeHead(nn.Module):
    """Scores every cell by its cosine to each landmark's mean feature; nothing is trained."""

    def __init__(self, channels: int, landmarks: int, temperature: float):
        super().__init__()
        self.register_buffer("prototype", torch.zeros(landmarks, channels))
        self.register_buffer(
            "background", torch.tensor(0.5)
        )  # cosine at which a cell belongs to no landmark
        self.temperature = temperature

    def forward(self, cells_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cosine = F.normalize(cells_NC, dim=1) @ self.prototype.T
        logits = torch.cat([cosine, self.background.expand(len(cells_NC), 1)], 1) / self.temperature
        located = cells_NC.new_zeros(len(cells_NC), 3)
        located[:, 2] = math.log(0.3)
        return logits, located


class SceneHead(nn.Module):
    """A whitening and a cell network, as one head on the backbone's features."""

    def __init__(self, whitening: Whitening, cells: nn.Module):
        super().__init__()
        self.whitening, self.cells = whitening, cells

    @torch.inference_mode()
    def forward(self, features_Chw: torch.Tensor) -> ScoreMaps:
        """Score maps of one image."""
        _, h, w = features_Chw.shape
        cells_NC = self.whitening(features_Chw.flatten(1).T)
        with torch.autocast(features_Chw.device.type, torch.bfloat16):
            logits, located = self.cells(cells_NC)
        score = logits.softmax(1, dtype=torch.float32)[:, :-1]
        located = located.float()
        sigma = located[:, 2].clamp(MIN_LOG_B, MAX_LOG_B).exp() * math.sqrt(
            2
        )  # of a Laplace distribution
        # a view: the scores stay in memory as (cells, landmarks), which is how decode runs fastest
        return ScoreMaps(
            score.T.unflatten(1, (h, w)),
            located[:, :2].T.unflatten(1, (h, w)),
            sigma.unflatten(0, (h, w)),
        )


class HeatmapSceneHead(nn.Module):
    """A whitening and the paper's head, one heatmap per landmark, decoded as `config` says. `sigma`
    is the standard deviation of its positions per axis (cells), measured on frames it did not learn
    from."""

    def __init__(self, whitening: Whitening, maps: PaperHead, config: HeatmapConfig):
        super().__init__()
        self.whitening, self.maps, self.config = whitening, maps, config
        self.register_buffer("sigma", torch.tensor(0.25))

    @torch.inference_mode()
    def forward(self, features_Chw: torch.Tensor) -> ScoreMaps:
        """Score maps of one image."""
        white_NC = self.whitening(features_Chw.flatten(1).T)
        return self.score_whitened(white_NC.T.unflatten(1, features_Chw.shape[1:]))

    def score_whitened(self, white_Chw: torch.Tensor) -> ScoreMaps:
        """Score maps of one image from its whitened features."""
        with torch.autocast(white_Chw.device.type, torch.bfloat16):
            logits_1Lhw = self.maps(white_Chw[None])
        score_Lhw = scores(logits_1Lhw.float(), self.config.loss)[0]
        _, h, w = white_Chw.shape
        return ScoreMaps(
            score_Lhw,
            score_Lhw.new_zeros(2, h, w),
            self.sigma.expand(h, w),
            self.config.reach,
            self.config.power,
            self.config.threshold,
        )


Head = SceneHead | HeatmapSceneHead  # features_Chw of one image -> ScoreMaps


def from_state(
    config: HeadConfig, state: dict[str, torch.Tensor], channels: int, landmarks: int
) -> Head:
    """The head that `state` was saved from; raises where its tensors do not fit the
    configuration."""
    width = len(state["whitening.matrix"])
    whitening = Whitening(channels, width)
    if config.kind == "heatmap":
        _expect_width(
            config.heatmap.width,
            4 * len(state["maps.layers.0.branches.0.weight"]),
            "head.heatmap.width",
        )
        head = HeatmapSceneHead(
            whitening, PaperHead(width, landmarks, config.heatmap.width), config.heatmap
        )
        head.load_state_dict(state)
        return head.eval()
    if config.kind == "prototype":
        cells = PrototypeHead(width, landmarks, config.prototype_temperature)
    elif config.kind == "cells":
        _expect_width(config.hidden, len(state["cells.first.weight"]), "head.hidden")
        cells = CellHead(width, config.hidden, landmarks)
    else:
        raise SldError(f"no head {config.kind!r}; there are cells, prototype, heatmap")
    head = SceneHead(whitening, cells)
    head.load_state_dict(state)
    return head.eval()


def _expect_width(said: int, found: int, setting: str) -> None:
    """Before memory is taken for it."""
    if said != found:
        raise SldError(f"head of width {found}, but {setting}={said}")
