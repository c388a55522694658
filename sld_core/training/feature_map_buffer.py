"""The map buffer: the frozen backbone runs once over all images, plain and augmented; training then
cuts patches out of the feature maps."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sld_core import heatmap
from sld_core.camera.images import fit, load_upright, rotate
from sld_core.config.scene import HeatmapConfig, SceneConfig
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.training import augmentation
from sld_core.training.distributed import ALONE, World, shard
from sld_core.training.feature_buffer import fit_whitening, fits_on_gpu
from sld_core.training.targets import hidden_elsewhere
from sld_core.training.training_set import TrainingSet
from sld_core.types import Camera, Progress, SldError, Visibility

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureMapBuffer:
    """Whitened feature maps of whole images. Map m covers `shape_M2` (rows, columns) cells, which
    stand row by row in `feature_NC` from `start_M` on; it shows frame `frame_M`, unaugmented where
    `plain_M`, with landmarks at `xy_ML2` (pixels of the map's image, corner origin) and
    `visibility_ML`."""

    feature_NC: Tensor
    start_M: Tensor
    shape_M2: Tensor
    frame_M: Tensor
    plain_M: Tensor
    xy_ML2: Tensor
    visibility_ML: Tensor

    def __len__(self) -> int:
        return len(self.start_M)

    def map(self, m: int) -> Tensor:
        """features_Chw (float32) of map m."""
        (h, w), start = self.shape_M2[m].tolist(), int(self.start_M[m])
        return self.feature_NC[start : start + h * w].float().T.unflatten(1, (h, w))


@dataclass(frozen=True)
class Patches:
    """Squares cut out of maps: features_BChw, and where each has every landmark (pixels from the
    patch's corner) and shows it."""

    features_BChw: Tensor
    xy_BL2: Tensor
    visibility_BL: Tensor


def fill(
    training_set: TrainingSet,
    angle_rad_F: np.ndarray,
    backbone: Backbone,
    config: SceneConfig,
    device: str,
    folder: Path,
    progress: Callable[[Progress], None],
    world: World = ALONE,
) -> tuple[FeatureMapBuffer, Whitening]:
    """One plain pass and buffer.augmented_passes over the training_set's frames, each turned
    upright by its angle.

    Where head.heatmap.memory_mb is too little, the maps are in a file without a name in `folder`,
    gone when the buffer is. Each rank of `world` holds the maps of its share of the frames; ranks
    together hold what one process alone does."""
    whitening = fit_whitening(
        training_set.frames,
        angle_rad_F,
        backbone,
        config.buffer,
        config.image.max_side_px,
        device,
        config.seed,
        world,
    )
    rows, passes = shard(len(training_set.frames), world), 1 + config.buffer.augmented_passes
    if len(training_set.frames) < world.size:
        raise SldError(
            f"{len(training_set.frames)} images cannot be shared among {world.size} processes; "
            "start fewer"
        )
    shape_M2 = _shapes(
        [training_set.frames[i].camera for i in rows], angle_rad_F[rows], config.image.max_side_px
    ).repeat_interleave(passes, 0)
    cells_M = shape_M2.prod(1)
    start_M = cells_M.cumsum(0) - cells_M
    feature_NC = _room(
        int(cells_M.sum()), len(whitening.matrix), config.head.heatmap, device, folder
    )
    xy_ML2 = []
    for m, start in enumerate(start_M.tolist()):
        i, number = rows[m // passes], m % passes
        if number == 0:
            image, A = load_upright(
                training_set.frames[i], config.image.max_side_px, angle_rad_F[i]
            )
            xy_L2 = training_set.labels.xy_FL2[i] @ A[:, :2].T + A[:, 2]
        # each picture has a generator of its own, so that it is the same whoever makes it
        rng = np.random.default_rng((config.seed, number, i))
        seen, seen_xy_L2 = (
            augmentation.augment(image, xy_L2, config.buffer, rng) if number else (image, xy_L2)
        )
        xy_ML2.append(torch.from_numpy(seen_xy_L2.astype(np.float32)))
        white_NC = whitening(backbone.features(seen, device).flatten(1).T)
        feature_NC[start : start + len(white_NC)] = white_NC.to(feature_NC)
        progress(Progress("filling the map buffer", (m + 1) / len(start_M)))
    m = torch.arange(len(start_M))
    frame_M = torch.tensor(rows)[m // passes]
    visibility_ML = torch.from_numpy(np.asarray(training_set.labels.visibility_FL, np.uint8))[
        frame_M
    ]
    return FeatureMapBuffer(
        feature_NC, start_M, shape_M2, frame_M, m % passes == 0, torch.stack(xy_ML2), visibility_ML
    ), whitening


def cut(
    buffer: FeatureMapBuffer, maps_K: Tensor, config: HeatmapConfig, generator: torch.Generator
) -> Patches:
    """config.patches random patches of random ones of the maps `maps_K`, a share of
    config.positives of them where a visible landmark is. Landmarks that are UNKNOWN count as HIDDEN
    in patches where they cannot be (SLD*)."""
    map_B = maps_K[torch.randint(len(maps_K), (config.patches,), generator=generator)]
    side = min(config.patch_px // heatmap.STRIDE, int(buffer.shape_M2.min()))
    room_B2 = buffer.shape_M2[map_B] - side
    corner_B2 = _below(room_B2 + 1, generator)
    xy_BL2, visibility_BL = buffer.xy_ML2[map_B], buffer.visibility_ML[map_B]
    near_B = torch.arange(config.patches) < round(config.positives * config.patches)
    corner_B2 = torch.where(
        near_B[:, None],
        _around_visible(xy_BL2, visibility_BL, corner_B2, room_B2, side, generator),
        corner_B2,
    )
    step = torch.arange(side)
    row_BP, column_BP = corner_B2[:, :1] + step, corner_B2[:, 1:] + step
    cell_BPP = (buffer.start_M[map_B, None] + row_BP * buffer.shape_M2[map_B, 1:])[
        :, :, None
    ] + column_BP[:, None]
    features_BPPC = buffer.feature_NC[cell_BPP.to(buffer.feature_NC.device)]
    xy_BL2 = xy_BL2 - heatmap.STRIDE * corner_B2.flip(1)[:, None]
    visibility_BL = hidden_elsewhere(
        xy_BL2, visibility_BL, side * heatmap.STRIDE, config.sigma_px, config.floor
    )
    return Patches(features_BPPC.permute(0, 3, 1, 2), xy_BL2, visibility_BL)


def _around_visible(
    xy_BL2: Tensor,
    visibility_BL: Tensor,
    corner_B2: Tensor,
    room_B2: Tensor,
    side: int,
    generator: torch.Generator,
) -> Tensor:
    """Corners (row, column) of patches, each around a random visible landmark at a random place in
    it; `corner_B2` stays where there is none."""
    size_B2 = heatmap.STRIDE * (room_B2 + side).flip(1)
    shown_BL = (visibility_BL == Visibility.VISIBLE) & (
        (xy_BL2 >= 0) & (xy_BL2 < size_B2[:, None])
    ).all(2)
    landmark_B = torch.multinomial(shown_BL.float() + 1e-12, 1, generator=generator)[:, 0]
    rows = torch.arange(len(landmark_B))
    cell_B2 = (xy_BL2[rows, landmark_B].nan_to_num() / heatmap.STRIDE).long().flip(1)
    around_B2 = cell_B2 - _below(torch.full_like(cell_B2, side), generator)
    return torch.where(
        shown_BL.any(1)[:, None], torch.minimum(around_B2.clamp_min(0), room_B2), corner_B2
    )


def _below(limit: Tensor, generator: torch.Generator) -> Tensor:
    """Random integers from 0 to below each limit."""
    return (torch.rand(limit.shape, generator=generator) * limit).long()


def _shapes(cameras: list[Camera], angle_rad_K: np.ndarray, max_side_px: int) -> Tensor:
    """Rows and columns of cells (K, 2) of each camera's image at working size, turned: by doing it,
    once for each case."""
    known, out = {}, []
    for case in zip(cameras, angle_rad_K.tolist()):
        if case not in known:
            camera, angle_rad = case
            image, _ = fit(
                np.zeros((camera.height, camera.width, 3), np.uint8), camera, max_side_px
            )
            known[case] = heatmap.grid_size(*rotate(image, angle_rad)[0].shape[:2])
        out.append(known[case])
    return torch.tensor(out).reshape(-1, 2)


def _room(cells: int, channels: int, config: HeatmapConfig, device: str, folder: Path) -> Tensor:
    """An empty (cells, channels): in the GPU's memory, else in RAM, else in a file of `folder`."""
    size, dtype = 2 * cells * channels, getattr(torch, config.precision)
    megabytes = size / 2**20
    if fits_on_gpu(size, device):
        return torch.empty(cells, channels, dtype=dtype, device=device)
    if megabytes <= config.memory_mb:
        return torch.empty(cells, channels, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SldError(
            f"feature maps take {megabytes:.0f} MB, {folder} has {free / 2**20:.0f} MB free; "
            "expected fewer frames, "
            "buffer.augmented_passes or buffer.channels, or a larger head.heatmap.memory_mb"
        )
    log.info(
        "feature maps take %.0f MB, more than head.heatmap.memory_mb: they are in a file in %s",
        megabytes,
        folder,
    )
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping keeps it alive
        file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.int16, "r+", shape=(cells, channels))).view(
            dtype
        )
