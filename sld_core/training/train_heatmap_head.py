"""The recipe of the paper's scene head: a buffer of feature maps -> heatmaps. One page, top to
bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sld_core import heatmap
from sld_core.config.scene import HeatmapConfig, SceneConfig
from sld_core.models.heads import HeatmapSceneHead, Whitening
from sld_core.models.heatmap_head import PaperHead
from sld_core.training import targets
from sld_core.training.distributed import ALONE, World, mean, parallel
from sld_core.training.feature_map_buffer import FeatureMapBuffer, cut
from sld_core.training.training_set import hold_out
from sld_core.types import Progress, SldError, Visibility

RIGHT_CELLS = 2.0  # a detection this near to its landmark is right


@dataclass(frozen=True)
class ValidationResult:
    """How the head does on maps it does not learn from: `recall` is the share of visible landmarks
    that are detected and right, `right` the share of detections; `pixel_error` the median distance
    and `sigma_cell` the deviation per axis of the right ones."""

    step: int
    seconds: float
    loss: float
    recall: float
    right: float
    pixel_error: float
    sigma_cell: float


def train(
    buffer: FeatureMapBuffer,
    whitening: Whitening,
    config: SceneConfig,
    device: str,
    progress: Callable[[Progress], None],
    watch: Callable[[ValidationResult, HeatmapSceneHead], None] = lambda result, head: None,
    world: World = ALONE,
) -> tuple[HeatmapSceneHead, list[tuple[int, float]]]:
    """Random patches of the maps, AdamW, bfloat16; stops when the recall on maps held out stalls,
    and returns the head as it was best, with the loss curve as (step, mean loss). `watch` is told
    of every look; its time is not counted as training. Each rank of `world` cuts its patches out of
    its own maps; gradients are averaged."""
    c = config.head.heatmap
    torch.manual_seed(config.seed)
    network = PaperHead(buffer.feature_NC.shape[1], buffer.xy_ML2.shape[1], c.width).to(
        device, memory_format=torch.channels_last
    )
    head, distributed = (
        HeatmapSceneHead(whitening.to(device), network, c).to(device),
        parallel(network, world),
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), c.learning_rate, weight_decay=c.weight_decay
    )
    generator = torch.Generator().manual_seed(config.seed + world.rank)
    learned_K, kept = split(buffer, c.validation_fraction)
    curve, running, best, best_state, checks_since, start = (
        [],
        math.nan,
        -1.0,
        None,
        0,
        time.monotonic(),
    )
    step = done = 0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * rate(done, c.schedule, c.warm_up, c.halvings)
        patches = cut(buffer, learned_K, c, generator)
        xy_BL2, visibility_BL = patches.xy_BL2.to(device), patches.visibility_BL.to(device)
        target_BLhw, weight_BLhw = targets.render(
            xy_BL2, visibility_BL, patches.features_BChw.shape[2:], c.sigma_px, c.floor
        )
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits_BLhw = distributed(patches.features_BChw.to(device, torch.bfloat16))
        loss = targets.loss(
            logits_BLhw.float(), target_BLhw, weight_BLhw, c.loss, c.positive_weight
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        running = loss.item() if step == 1 else 0.95 * running + 0.05 * loss.item()
        seconds = float(
            mean(torch.tensor(time.monotonic() - start), world)
        )  # ranks must agree on when to stop
        done = max(step / c.steps, seconds / c.max_seconds if c.max_seconds else 0)
        if step % 20 == 0 or done >= 1:
            curve.append((step, running))
            progress(
                Progress(
                    "training the heatmap head",
                    min(done, 1),
                    running,
                    seconds * (1 / min(done, 1) - 1),
                )
            )
        if step % c.check_every == 0 or done >= 1:
            result = validate(head, buffer, kept, config, step, seconds, running, world)
            before = time.monotonic()
            watch(result, head)
            start += time.monotonic() - before  # what a watcher does is no training
            checks_since += 1
            if result.recall > best:
                best, best_state, checks_since = result.recall, copy.deepcopy(head.state_dict()), 0
            if checks_since >= c.patience:
                break
    if not math.isfinite(running):
        raise SldError(
            f"the training diverged (loss {running}); lower head.heatmap.learning_rate from "
            f"{c.learning_rate}"
        )
    head.load_state_dict(best_state)
    return head.cpu().eval(), curve


def expected_s(config: HeatmapConfig) -> float:
    """Seconds that training takes on 2 cores, where it does not stop early, with 1000 landmarks."""
    cells = config.patches * (config.patch_px / heatmap.STRIDE) ** 2
    seconds = 2e-5 * cells * config.steps  # measured, at width 128
    return min(seconds, config.max_seconds) if config.max_seconds else seconds


def rate(done: float, schedule: str, warm_up: float, halvings: int) -> float:
    """The learning rate as a part of its largest, at `done` (0..1) of the training: a linear rise,
    then half a cosine wave to zero, or `halvings` steps down, each to half of it (SLD*)."""
    if done < warm_up:
        return (done + 0.01) / (warm_up + 0.01)
    if schedule == "halving":
        return 0.5 ** int(done * (halvings + 1))
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def split(buffer: FeatureMapBuffer, fraction: float) -> tuple[torch.Tensor, list[int]]:
    """Maps to learn from, and plain maps of frames held out in chunks, of which none is learned;
    all where nothing is held out."""
    frames = buffer.frame_M.unique()
    held_out = torch.isin(buffer.frame_M, frames[hold_out(len(frames), fraction)])
    kept = torch.nonzero(held_out & buffer.plain_M)[:, 0]
    if len(kept) == 0:  # too few frames: the looks flatter, but the training still ends
        kept = torch.nonzero(buffer.plain_M)[:, 0]
    return torch.nonzero(~held_out)[:, 0], kept.tolist()


@torch.inference_mode()
def validate(
    head: HeatmapSceneHead,
    buffer: FeatureMapBuffer,
    maps: list[int],
    config: SceneConfig,
    step: int,
    seconds: float,
    loss: float,
    world: World,
) -> ValidationResult:
    """Decode `maps` as the localizer would, and compare; sets the head's sigma."""
    device, errors, detected, visible = head.sigma.device, [], 0, 0
    for m in maps:
        found = heatmap.decode(head.score_whitened(buffer.map(m).to(device)), config.decode)
        shown = buffer.visibility_ML[m].numpy() == Visibility.VISIBLE
        error_K2 = (found.xy_px_K2 - buffer.xy_ML2[m].numpy()[found.landmark_K])[
            shown[found.landmark_K]
        ]
        errors.append(torch.from_numpy(error_K2))
        detected, visible = detected + len(found), visible + int(shown.sum())
    error_K2 = torch.cat(errors)
    distance_K = error_K2.norm(dim=1)
    right = distance_K < RIGHT_CELLS * heatmap.STRIDE
    pixel_error = float(distance_K[right].median()) if right.any() else math.nan
    # of a normal distribution, the median distance is 1.18 sigma
    sigma = pixel_error / 1.1774 / heatmap.STRIDE if right.any() else RIGHT_CELLS
    values = torch.tensor(
        [
            loss,
            float(right.sum()) / max(visible, 1),
            float(right.sum()) / max(detected, 1),
            pixel_error,
            sigma,
        ]
    )
    loss, recall, share, pixel_error, sigma = mean(values, world).tolist()
    head.sigma.fill_(max(sigma, 0.02))
    return ValidationResult(step, seconds, loss, recall, share, pixel_error, sigma)
