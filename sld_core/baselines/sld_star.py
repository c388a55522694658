"""The recipe of SLD*: a training_set -> whole networks, trained on patches of the images. One page,
top to bottom.

Do and Sinha, 3DV 2024: 8 patches of 96x96 an image, half of them around a visible landmark,
Gaussian targets of 20 px, sum of squares, AdamW from 1e-3, halved every fifth of the training.
Beyond it: images are augmented as for our own heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from sld_core.baselines.budget import Budget
from sld_core.baselines.sld_star_model import SldStar, SldStarNetwork, blocks
from sld_core.camera.images import load_upright
from sld_core.config.scene import BufferConfig
from sld_core.config.training import SldStarConfig
from sld_core.heatmap import STRIDE
from sld_core.training import augmentation, targets
from sld_core.training.training_set import TrainingSet
from sld_core.types import Progress, SldError, Visibility

Watch = Callable[
    [int, float, SldStar], None
]  # step, seconds of training so far, the model as it is


def train_ensemble(
    training_set: TrainingSet,
    config: SldStarConfig,
    buffer_config: BufferConfig,
    max_side_px: int,
    seed: int,
    device: str,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[SldStar, list[tuple[int, float]]]:
    """config.networks networks, one after the other, each for a block of consecutive landmarks; as
    one model, and the loss curves one behind the other. config.seconds is that of each."""
    ranges = blocks(len(training_set.landmarks), config.networks)
    models, curves = zip(
        *(
            train(
                training_set,
                config,
                buffer_config,
                max_side_px,
                seed + i,
                device,
                progress,
                landmarks=block,
            )
            for i, block in enumerate(ranges)
        )
    )
    model = SldStar(
        tuple(m.networks[0] for m in models), ranges, training_set.landmarks.xyz_L3, config
    )
    return model, [point for curve in curves for point in curve]


def train(
    training_set: TrainingSet,
    config: SldStarConfig,
    buffer_config: BufferConfig,
    max_side_px: int,
    seed: int,
    device: str,
    progress: Callable[[Progress], None] = lambda _: None,
    watch: Watch = lambda *_: None,
    landmarks: range | None = None,
) -> tuple[SldStar, list[tuple[int, float]]]:
    """One network for `landmarks` (a block of consecutive ones; None: all) of the training_set, and
    its loss curve as (step, mean).

    `watch` is called every config.watch_steps and at the end, off the clock: that is where curves
    of recall over seconds come from. Images are taken as they are, not turned upright."""
    block = landmarks or range(len(training_set.landmarks))
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = SldStarNetwork(len(block)).to(device, memory_format=torch.channels_last)
    model = SldStar((network,), (block,), training_set.landmarks.xyz_L3, config)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate)
    loaded = [load_upright(frame, max_side_px, 0.0) for frame in training_set.frames]
    drawn = images(training_set, loaded, block, buffer_config, rng)
    budget = Budget(
        math.ceil(config.epochs * len(training_set.frames) / config.images), config.seconds
    )
    curve, running, last = [], None, False
    while not last:
        halvings = min(config.halvings, int(budget.done * (config.halvings + 1)))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5**halvings
        parts = [patches(*next(drawn), config, rng) for _ in range(config.images)]
        image, xy, visibility = (
            torch.from_numpy(np.concatenate(part)).to(device) for part in zip(*parts)
        )
        image = image.permute(0, 3, 1, 2).float() / 255  # channels last in memory, as they lie
        visibility = targets.hidden_elsewhere(
            xy, visibility, config.patch_px, config.sigma_px, config.floor
        )
        target, weight = targets.render(
            xy, visibility, (config.patch_px // STRIDE,) * 2, config.sigma_px, config.floor
        )
        network.train()
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=config.bf16):
            logits = network(image)
        loss = targets.loss(logits.float(), target, weight, config.loss, config.positive_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
        budget.step += 1
        last = budget.done == 1
        if budget.step % 10 == 0 or last:
            curve.append((budget.step, running))
            progress(
                Progress("training the whole network", budget.done, running, budget.seconds_left)
            )
        if budget.step % config.watch_steps == 0 or last:
            with budget.pause():
                watch(budget.step, budget.seconds, model)
    if not math.isfinite(running):
        raise SldError(
            f"the training diverged (loss {running}); lower learning_rate from "
            f"{config.learning_rate}"
        )
    return model, curve


def images(
    training_set: TrainingSet,
    loaded: list[tuple[np.ndarray, np.ndarray]],
    block: range,
    buffer_config: BufferConfig,
    rng: np.random.Generator,
):
    """Endless (image_HW3, xy_L2, visibility_L), augmented; every frame once, in random order,
    before any comes again. `loaded`: what load_upright gave of each."""
    columns = slice(block.start, block.stop)
    while True:
        for i in rng.permutation(len(loaded)):
            image, A = loaded[i]
            xy_L2 = training_set.labels.xy_FL2[i, columns] @ A[:, :2].T + A[:, 2]
            image, xy_L2 = augmentation.augment(image, xy_L2, buffer_config, rng)
            yield image, xy_L2, training_set.labels.visibility_FL[i, columns]


def patches(
    image_HW3: np.ndarray,
    xy_L2: np.ndarray,
    visibility_L: np.ndarray,
    config: SldStarConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Square patches (P, S, S, 3) of an image, landmarks' pixels in each (P, L, 2) and their
    visibility (P, L). The first half hold a visible landmark, anywhere in them, if there is one;
    the others lie anywhere."""
    side, size = config.patch_px, np.array(image_HW3.shape[1::-1])
    if side % STRIDE or side > size.min():
        raise SldError(
            f"patches of {side} px: expected a multiple of {STRIDE}, at most the image's "
            f"{size[0]}x{size[1]}; set patch_px"
        )
    corner_P2 = rng.integers(0, size - side + 1, (config.patches, 2))
    with np.errstate(invalid="ignore"):
        shown = xy_L2[(visibility_L == Visibility.VISIBLE) & ((xy_L2 >= 0) & (xy_L2 < size)).all(1)]
    if len(shown):
        around = rng.choice(shown, config.patches // 2).astype(int) - rng.integers(
            0, side, (config.patches // 2, 2)
        )
        corner_P2[: len(around)] = np.clip(around, 0, size - side)
    cut = np.stack([image_HW3[y : y + side, x : x + side] for x, y in corner_P2])
    xy_PL2 = (xy_L2[None] - corner_P2[:, None]).astype(np.float32)
    return cut, xy_PL2, np.repeat(visibility_L[None], len(corner_P2), 0)
