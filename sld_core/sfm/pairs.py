"""Which pairs of images are worth matching: neighbours in time, and images that look alike whenever
they were taken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch.nn import functional

from sld_core.camera.images import read_image
from sld_core.config.mapping import SfmConfig
from sld_core.models.backbone import Backbone
from sld_core.spread import spread
from sld_core.types import Frame, Progress

log = logging.getLogger(__name__)

Pairs = list[tuple[int, int]]

DESCRIPTOR_SIDE_PX = 384  # the longer side of the images that global descriptors are made of
OTHER_PASS = 6  # frames apart, from which on two views count as of different passes
VOCABULARY_FRAMES, VOCABULARY_CELLS = 100, 200


def is_exhaustive(frames: Sequence[Frame], config: SfmConfig) -> bool:
    """Whether simply all pairs are matched."""
    if config.matching == "auto":
        return len(frames) <= config.exhaustive_up_to
    return config.matching == "exhaustive"


def all_pairs(count: int) -> Pairs:
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def propose(frames: Sequence[Frame], likeness_FF: np.ndarray, config: SfmConfig) -> Pairs:
    """Pairs (i < j) of frames to match first: neighbours in time, the most alike, and the most
    alike of every other pass."""
    return sorted(
        {
            *neighbours(frames, config.overlap),
            *closest(likeness_FF, config.retrieval_pairs),
            *closest(likeness_FF, config.revisit_pairs, gap=OTHER_PASS),
        }
    )


def bridges(likeness_FF: np.ndarray, verified_FF: np.ndarray, count: int) -> Pairs:
    """Pairs that could join the parts that verified matches leave: each frame with the `count` most
    like it in other parts; none where there is one part."""
    parts, part_F = connected_components(csr_array(verified_FF), directed=False)
    if parts < 2:
        return []
    return closest(np.where(part_F[:, None] == part_F[None], -np.inf, likeness_FF), count)


def neighbours(frames: Sequence[Frame], overlap: int) -> Pairs:
    """Each frame with the `overlap` next ones of its session, and with those 2 and 4 times
    `overlap` away: wide baselines."""
    steps = sorted({*range(1, overlap + 1), *(overlap * 2**k for k in range(1, 3))})
    pairs = []
    for session in dict.fromkeys(f.session for f in frames):
        members = [i for i, f in enumerate(frames) if f.session == session]
        members.sort(key=lambda i: (frames[i].stamp_ns, i))
        pairs += [tuple(sorted((a, b))) for step in steps for a, b in zip(members, members[step:])]
    return sorted(pairs)


def closest(likeness_FF: np.ndarray, count: int, gap: int = 1) -> Pairs:
    """Each frame with the `count` most like it that are at least `gap` apart in order, from each
    other and from the frame: with a gap of 1 simply the nearest, with a larger one the best of
    every other pass through the place."""
    pairs = set()
    for i, order in enumerate(np.argsort(-likeness_FF, axis=1, kind="stable")):
        free = np.ones(len(likeness_FF), bool)
        free[max(0, i - gap + 1) : i + gap] = False
        for _ in range(count):
            left = order[free[order] & np.isfinite(likeness_FF[i, order])]
            if not len(left):
                break
            j = int(left[0])
            pairs.add((min(i, j), max(i, j)))
            free[max(0, j - gap + 1) : j + gap] = False
    return sorted(pairs)


def global_descriptors(
    frames: Sequence[Frame], seed: int, progress: Callable[[Progress], None], words: int = 32
) -> np.ndarray:
    """One unit vector (F, C) per frame: differences of the frozen backbone's cells to `words`
    visual words, summed per word (VLAD, Jégou et al., CVPR 2010); the words are clustered from
    these images."""
    backbone = Backbone("xfeat")
    cells = []
    for i, frame in enumerate(frames):
        image = read_image(frame.image_path)
        scale = DESCRIPTOR_SIDE_PX / max(image.shape[:2])
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cells.append(functional.normalize(backbone.features(image).flatten(1).T, dim=1).half())
        progress(Progress("describing images", (i + 1) / len(frames)))
    word_KC = _words(cells, words, seed)
    return torch.stack([_vlad(cell_NC.float(), word_KC) for cell_NC in cells]).numpy()


def _words(cells: Sequence[torch.Tensor], count: int, seed: int) -> torch.Tensor:
    """Spherical k-means over cells of frames spread over the set."""
    generator = torch.Generator().manual_seed(seed)
    frames = spread(range(len(cells)), VOCABULARY_FRAMES)
    sample = []
    for i in frames:
        drawn = torch.randperm(len(cells[i]), generator=generator)[:VOCABULARY_CELLS]
        sample.append(cells[i][drawn])
    sample_NC = torch.cat(sample).float()
    word_KC = sample_NC[torch.randperm(len(sample_NC), generator=generator)[:count]]
    for _ in range(15):
        nearest_N = (sample_NC @ word_KC.T).argmax(1)
        total_KC = torch.zeros_like(word_KC).index_add_(0, nearest_N, sample_NC)
        word_KC = torch.where(
            total_KC.norm(dim=1, keepdim=True) > 0, functional.normalize(total_KC, dim=1), word_KC
        )
    return word_KC


def _vlad(cell_NC: torch.Tensor, word_KC: torch.Tensor) -> torch.Tensor:
    nearest_N = (cell_NC @ word_KC.T).argmax(1)
    residual_KC = torch.zeros_like(word_KC).index_add_(0, nearest_N, cell_NC - word_KC[nearest_N])
    # per word first: a wall of one texture must not drown the rest
    residual_KC = functional.normalize(residual_KC, dim=1)
    return functional.normalize(residual_KC.flatten(), dim=0)
