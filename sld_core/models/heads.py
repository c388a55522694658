"""Scene heads: features_Chw of the backbone -> heatmap.ScoreMaps. Nothing downstream depends on
which head it was."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.config.scene import HeadConfig, HeatmapConfig
from sld_core.heatmap import ScoreMaps
from sld_core.models.heatmap_head import PaperHead, scores
from sld_core.models.precision import autocast
from sld_core.types import SldError

# log of the narrowest and widest Laplace scale of an offset, in cells
MIN_LOG_B, MAX_LOG_B = math.log(0.02), math.log(2.0)
WHITENING_FLOOR = 1e-3  # fraction of the largest variance


def limited(free: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """`free` clamped, but with the gradient of `free`: values that early steps push beyond the
    limits can come back."""
    return free + (free.clamp(low, high) - free).detach()


class Whitening(nn.Module):
    """A linear projection of backbone features to decorrelated channels of unit variance (PCA),
    fitted on the scene: features_NC -> white_NC."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("matrix", torch.zeros(outputs, inputs))

    @classmethod
    def fit(cls, features_NC: torch.Tensor, outputs: int) -> Whitening:
        """From at least `outputs` features."""
        out = cls(features_NC.shape[1], outputs)
        x = features_NC.double()
        mean = x.mean(0)
        scale = x.std(0) + 1e-6  # the scales of joined networks differ by a factor of hundreds
        x = (x - mean) / scale
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        values, vectors = values.flip(0)[:outputs], vectors.flip(1)[:, :outputs]
        # without the floor, directions that hold only noise would be amplified
        out.mean.copy_(mean)
        out.matrix.copy_((vectors * (values + WHITENING_FLOOR * values[0]).rsqrt()).T / scale)
        return out

    def forward(self, features_NC: torch.Tensor) -> torch.Tensor:
        return (features_NC - self.mean) @ self.matrix.T


class CellHead(nn.Module):
    """Classifies each cell separately, as one of L landmarks or background, and predicts the
    landmark's offset (x, y) from the cell's centre, in cells, and log b of its Laplace error."""

    def __init__(self, channels: int, hidden: int, landmarks: int):
        super().__init__()
        self.first = nn.Linear(channels, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.classify = nn.Linear(hidden, landmarks + 1)  # the last one is background
        self.locate = nn.Linear(hidden, 3)

    def forward(self, cells_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, L + 1) and located (N, 3) = (x, y, log b) from whitened features."""
        x = F.relu(self.first(cells_NC))
        x = F.relu(self.second(x))
        return self.classify(x), self.locate(x)


class PrototypeHead(nn.Module):
    """Classifies every cell by its cosine to each landmark's mean feature, with the inputs and
    outputs of CellHead; nothing is trained."""

    def __init__(self, channels: int, landmarks: int, temperature: float):
        super().__init__()
        self.register_buffer("prototype", torch.zeros(landmarks, channels))
        # below this cosine a cell is background
        self.register_buffer("background", torch.tensor(0.5))
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
        with autocast(features_Chw.device):
            logits, located = self.cells(cells_NC)
        score = logits.softmax(1, dtype=torch.float32)[:, :-1]
        located = located.float()
        # the standard deviation of a Laplace distribution is sqrt(2) b
        sigma = located[:, 2].clamp(MIN_LOG_B, MAX_LOG_B).exp() * math.sqrt(2)
        # a view: in memory the scores are (cells, landmarks), the fastest order for decode
        return ScoreMaps(
            score.T.unflatten(1, (h, w)),
            located[:, :2].T.unflatten(1, (h, w)),
            sigma.unflatten(0, (h, w)),
        )


class HeatmapSceneHead(nn.Module):
    """A whitening and the paper's head, one heatmap per landmark, decoded as `config` says. `sigma`
    is the standard deviation of its positions per axis, in cells, measured on held-out frames."""

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
        with autocast(white_Chw.device):
            logits_1Lhw = self.maps(white_Chw[None])
        score_Lhw = scores(logits_1Lhw.float(), self.config.target.loss)[0]
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
    """The head that `state` was saved from, for backbone features of `channels`; raises SldError,
    KeyError or RuntimeError where the tensors do not fit the configuration."""
    width = len(state["whitening.matrix"])
    whitening = Whitening(channels, width)
    if config.kind == "heatmap":
        found = 4 * len(state["maps.layers.0.branches.0.weight"])
        _expect_width("head.heatmap.width", config.heatmap.width, found)
        maps = PaperHead(width, landmarks, config.heatmap.width)
        head = HeatmapSceneHead(whitening, maps, config.heatmap)
    elif config.kind == "prototype":
        cells = PrototypeHead(width, landmarks, config.prototype_temperature)
        head = SceneHead(whitening, cells)
    else:
        _expect_width("head.hidden", config.hidden, len(state["cells.first.weight"]))
        head = SceneHead(whitening, CellHead(width, config.hidden, landmarks))
    head.load_state_dict(state)
    return head.eval()


def _expect_width(setting: str, value: int, found: int) -> None:
    """Checked before a head of that width takes its memory."""
    if value != found:
        raise SldError(f"head of width {found}, but {setting}={value}")
