"""The recipe of the paper's scene head: a buffer of feature maps -> heatmaps. One page, top to
bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from sld_core import heatmap
from sld_core.config.scene import HeatmapConfig, SceneConfig
from sld_core.models.heads import HeatmapSceneHead, Whitening
from sld_core.models.heatmap_head import PaperHead
from sld_core.models.precision import autocast, conv_dtype
from sld_core.training import schedule, targets
from sld_core.training.distributed import World, mean, parallel
from sld_core.training.feature_map_buffer import FeatureMapBuffer, cut
from sld_core.training.run import Run
from sld_core.training.training_set import hold_out
from sld_core.training.validation import FOUND_PX, ValidationResult, summarize
from sld_core.types import Progress, SldError, Visibility

# steps, seconds of training, the head as it is, and how good it is
Watch = Callable[[int, float, HeatmapSceneHead, ValidationResult], None]


def train(
    buffer: FeatureMapBuffer,
    whitening: Whitening,
    config: SceneConfig,
    run: Run,
    watch: Watch = lambda *_: None,
) -> tuple[HeatmapSceneHead, list[tuple[int, float]]]:
    """Train on random patches of the maps, and return the head that found most landmarks in
    held-out maps, with the loss curve as (step, mean loss).

    AdamW, in `conv_dtype` of the device; training stops when validation no longer improves. `watch`
    is called after every validation, and its time does not count as training. Each rank cuts
    patches out of its own maps; gradients are averaged."""
    c = config.head.heatmap
    torch.manual_seed(run.seed)
    network = PaperHead(buffer.feature_NC.shape[1], buffer.xy_ML2.shape[1], c.width)
    network = network.to(run.device, memory_format=torch.channels_last)
    head = HeatmapSceneHead(whitening.to(run.device), network, c).to(run.device)
    distributed = parallel(network, run.world)
    optimizer = schedule.optimizer(network, c.schedule)
    generator = torch.Generator().manual_seed(run.seed + run.world.rank)
    learned_K, held_out = split(buffer, c.validation_fraction)
    curve, running = [], math.nan
    best, best_state, checks_since_best = -1.0, None, 0
    dtype = conv_dtype(torch.device(run.device).type)
    step, done, start = 0, 0.0, time.monotonic()
    while done < 1:
        schedule.set_rate(optimizer, done, c.schedule)
        patches = cut(buffer, learned_K, c, generator)
        with autocast(run.device):
            logits_BLhw = distributed(patches.features_BChw.to(run.device, dtype))
        loss = targets.heatmap_loss(
            logits_BLhw,
            patches.xy_BL2.to(run.device),
            patches.visibility_BL.to(run.device),
            c.target,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        running = loss.item() if step == 1 else 0.95 * running + 0.05 * loss.item()
        # averaged, because ranks must agree on when to stop
        seconds = float(mean(torch.tensor(time.monotonic() - start), run.world))
        done = _fraction_done(step, seconds, c)
        if step % 20 == 0 or done == 1:
            curve.append((step, running))
            left = seconds * (1 / done - 1)
            run.progress(Progress("training the heatmap head", done, running, left))
        if step % c.check_every == 0 or done == 1:
            result = validate(head, buffer, held_out, config, run.world)
            before = time.monotonic()
            watch(step, seconds, head, result)
            start += time.monotonic() - before
            checks_since_best += 1
            if result.found > best:
                best, best_state = result.found, copy.deepcopy(head.state_dict())
                checks_since_best = 0
            if checks_since_best >= c.patience:
                break
    if not math.isfinite(running):
        raise SldError(
            f"the training diverged (loss {running}); lower head.heatmap.schedule.learning_rate "
            f"from {c.schedule.learning_rate}"
        )
    head.load_state_dict(best_state)
    return head.cpu().eval(), curve


def _fraction_done(step: int, seconds: float, config: HeatmapConfig) -> float:
    by_time = seconds / config.max_seconds if config.max_seconds else 0.0
    return min(1.0, max(step / config.steps, by_time))


def expected_s(config: HeatmapConfig) -> float:
    """Seconds of training on 2 cores with 1000 landmarks, unless it stops early."""
    cells = config.patches * (config.patch_px / heatmap.STRIDE) ** 2
    seconds = 2e-5 * cells * config.steps  # measured, at width 128
    return min(seconds, config.max_seconds) if config.max_seconds else seconds


def split(buffer: FeatureMapBuffer, fraction: float) -> tuple[torch.Tensor, list[int]]:
    """Maps to learn from, and plain maps to validate with: those of frames held out in chunks, or
    all where none are held out."""
    frames = buffer.frame_M.unique()
    held_out = torch.isin(buffer.frame_M, frames[hold_out(len(frames), fraction)])
    validation = torch.nonzero(held_out & buffer.plain_M)[:, 0]
    if len(validation) == 0:  # too few frames: the results flatter, but training still stops
        validation = torch.nonzero(buffer.plain_M)[:, 0]
    return torch.nonzero(~held_out)[:, 0], validation.tolist()


@torch.inference_mode()
def validate(
    head: HeatmapSceneHead,
    buffer: FeatureMapBuffer,
    maps: list[int],
    config: SceneConfig,
    world: World,
) -> ValidationResult:
    """Decode `maps` as the localizer would, and compare with their visible landmarks; sets the
    head's sigma."""
    errors, visible = [], 0
    for m in maps:
        features_Chw = buffer.map(m).to(head.sigma.device)
        detections = heatmap.decode(head.score_whitened(features_Chw), config.decode)
        shown_L = buffer.visibility_ML[m].numpy() == Visibility.VISIBLE
        true_K2 = buffer.xy_ML2[m].numpy()[detections.landmark_K]
        error_K = np.linalg.norm(detections.xy_px_K2 - true_K2, axis=1)
        errors.append(np.where(shown_L[detections.landmark_K], error_K, np.inf))
        visible += int(shown_L.sum())
    local = summarize(np.concatenate(errors), visible)
    # the median distance of a normal distribution in two dimensions is 1.18 sigma
    sigma_cell = min(local.pixel_error, FOUND_PX * 1.1774) / 1.1774 / heatmap.STRIDE
    values = torch.tensor([local.found, local.precision, local.pixel_error, sigma_cell])
    found, precision, pixel_error, sigma_cell = mean(values, world).tolist()
    head.sigma.fill_(max(sigma_cell, 0.02))
    return ValidationResult(found, precision, pixel_error)
