"""The map buffer: the frozen backbone runs once over all images, plain and augmented; training then
cuts patches out of the feature maps."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sld_core import heatmap
from sld_core.camera.images import fit, rotate
from sld_core.config.scene import HeatmapConfig, SceneConfig
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.training import augmentation
from sld_core.training.distributed import shard
from sld_core.training.feature_buffer import fit_whitening, fits_on_gpu
from sld_core.training.run import Run
from sld_core.training.targets import hidden_outside
from sld_core.training.training_set import TrainingSet
from sld_core.training.working_images import WorkingImages, upright
from sld_core.types import Progress, SldError, Visibility

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureMapBuffer:
    """Whitened feature maps of whole images.

    Map m covers `shape_M2` (rows, columns) cells, stored row by row in `feature_NC` from `start_M`
    on. It shows frame `frame_M`, unaugmented where `plain_M`, with landmarks at `xy_ML2` (pixels of
    the map's image, corner origin) and their `visibility_ML`."""

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
    """Squares cut out of maps: features_BChw, the positions of all landmarks (pixels from the
    patch's corner), and their visibility."""

    features_BChw: Tensor
    xy_BL2: Tensor
    visibility_BL: Tensor


def fill(
    training_set: TrainingSet, backbone: Backbone, config: SceneConfig, folder: Path, run: Run
) -> tuple[FeatureMapBuffer, Whitening]:
    """The maps of one plain pass and buffer.augmented_passes over the frames to learn from.

    Maps beyond head.heatmap.memory_mb are kept in an unnamed file in `folder` that disappears with
    the buffer. The frames are divided among the ranks: each holds the maps of its own, and together
    they hold what one process alone would."""
    images = upright(training_set.frames, config.image.max_side_px)
    whitening = fit_whitening(images, backbone, config.buffer, run)
    if len(images.frames) < run.world.size:
        raise SldError(
            f"{len(images.frames)} images cannot be shared among {run.world.size} processes; "
            "start fewer"
        )
    rows = shard(len(images.frames), run.world)
    passes = 1 + config.buffer.augmented_passes
    shape_M2 = _shapes(images, rows).repeat_interleave(passes, 0)
    cells_M = shape_M2.prod(1)
    start_M = cells_M.cumsum(0) - cells_M
    size_NC = (int(cells_M.sum()), len(whitening.matrix))
    feature_NC = _allocate(size_NC, config.head.heatmap, run.device, folder)
    xy_ML2 = []
    for m, start in enumerate(start_M.tolist()):
        i, number = rows[m // passes], m % passes
        if number == 0:
            plain, A = images.load(i)
            plain_xy_L2 = training_set.labels.xy_FL2[i] @ A[:, :2].T + A[:, 2]
        image, xy_L2 = plain, plain_xy_L2
        if number > 0:
            # each view has its own random generator, so that it does not depend on who makes it
            rng = np.random.default_rng((run.seed, number, i))
            image, xy_L2 = augmentation.augment(plain, plain_xy_L2, config.buffer, rng)
        xy_ML2.append(torch.from_numpy(xy_L2.astype(np.float32)))
        white_NC = whitening(backbone.features(image, run.device).flatten(1).T)
        feature_NC[start : start + len(white_NC)] = white_NC.to(feature_NC)
        run.progress(Progress("filling the map buffer", (m + 1) / len(start_M)))
    m = torch.arange(len(start_M))
    frame_M = torch.tensor(rows)[m // passes]
    visibility_FL = torch.from_numpy(np.asarray(training_set.labels.visibility_FL, np.uint8))
    buffer = FeatureMapBuffer(
        feature_NC,
        start_M,
        shape_M2,
        frame_M,
        m % passes == 0,
        torch.stack(xy_ML2),
        visibility_FL[frame_M],
    )
    return buffer, whitening


def cut(
    buffer: FeatureMapBuffer, maps_K: Tensor, config: HeatmapConfig, generator: torch.Generator
) -> Patches:
    """Cut config.patches random patches out of random ones of the maps `maps_K`; the fraction
    config.positives of them lie around a visible landmark. Landmarks that are UNKNOWN count as
    HIDDEN in patches that they cannot be in (SLD*)."""
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
    start_BP = buffer.start_M[map_B, None] + row_BP * buffer.shape_M2[map_B, 1:]
    cell_BPP = start_BP[:, :, None] + column_BP[:, None]
    features_BPPC = buffer.feature_NC[cell_BPP.to(buffer.feature_NC.device)]
    xy_BL2 = xy_BL2 - heatmap.STRIDE * corner_B2.flip(1)[:, None]
    visibility_BL = hidden_outside(xy_BL2, visibility_BL, side * heatmap.STRIDE, config.target)
    return Patches(features_BPPC.permute(0, 3, 1, 2), xy_BL2, visibility_BL)


def _around_visible(
    xy_BL2: Tensor,
    visibility_BL: Tensor,
    corner_B2: Tensor,
    room_B2: Tensor,
    side: int,
    generator: torch.Generator,
) -> Tensor:
    """Corners (row, column) of patches, each with a random visible landmark somewhere in it;
    `corner_B2` where there is none."""
    size_B2 = heatmap.STRIDE * (room_B2 + side).flip(1)
    inside_BL = ((xy_BL2 >= 0) & (xy_BL2 < size_B2[:, None])).all(2)
    shown_BL = inside_BL & (visibility_BL == Visibility.VISIBLE)
    landmark_B = torch.multinomial(shown_BL.float() + 1e-12, 1, generator=generator)[:, 0]
    rows = torch.arange(len(landmark_B))
    cell_B2 = (xy_BL2[rows, landmark_B].nan_to_num() / heatmap.STRIDE).long().flip(1)
    around_B2 = cell_B2 - _below(torch.full_like(cell_B2, side), generator)
    around_B2 = torch.minimum(around_B2.clamp_min(0), room_B2)
    return torch.where(shown_BL.any(1)[:, None], around_B2, corner_B2)


def _below(limit: Tensor, generator: torch.Generator) -> Tensor:
    """Random integers from 0 to below each limit."""
    return (torch.rand(limit.shape, generator=generator) * limit).long()


def _shapes(images: WorkingImages, rows: range) -> Tensor:
    """Rows and columns of cells (K, 2) of these images, found by resizing and rotating an empty
    image once for each camera and angle."""
    known, out = {}, []
    for i in rows:
        camera, angle_rad = images.frames[i].camera, float(images.angle_rad_F[i])
        if (camera, angle_rad) not in known:
            empty = np.zeros((camera.height, camera.width, 3), np.uint8)
            image, _ = fit(empty, camera, images.max_side_px)
            shape = rotate(image, angle_rad)[0].shape[:2]
            known[camera, angle_rad] = heatmap.grid_size(*shape)
        out.append(known[camera, angle_rad])
    return torch.tensor(out).reshape(-1, 2)


def _allocate(size_NC: tuple[int, int], config: HeatmapConfig, device: str, folder: Path) -> Tensor:
    """An empty tensor in the GPU's memory, else in RAM, else in a file in `folder`."""
    size, dtype = 2 * size_NC[0] * size_NC[1], getattr(torch, config.precision)
    megabytes = size / 2**20
    if fits_on_gpu(size, device):
        return torch.empty(size_NC, dtype=dtype, device=device)
    if megabytes <= config.memory_mb:
        return torch.empty(size_NC, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SldError(
            f"feature maps take {megabytes:.0f} MB, {folder} has {free / 2**20:.0f} MB free; "
            "expected fewer frames, buffer.augmented_passes or buffer.channels, or a larger "
            "head.heatmap.memory_mb"
        )
    log.info(
        "feature maps take %.0f MB, more than head.heatmap.memory_mb: they are in a file in %s",
        megabytes,
        folder,
    )
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping keeps it alive
        file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.int16, "r+", shape=size_NC)).view(dtype)
