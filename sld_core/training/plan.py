"""Estimates the time and memory of training on many scenes; nothing is trained.

Multiplications, weights and activations are counted on the networks themselves. The other unit
costs are measured, or guessed where a note says so. docs/distributed.md has the formulae."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sld_core.config.scene import BACKBONES
from sld_core.config.settings import chosen, ranged
from sld_core.types import SldError

# milliseconds of one image of 640x480 in bfloat16 on 2 cores (`sld bench backbones`)
CPU_FORWARD_MS = {
    "lite0+xfeat": 46.0,
    "efficientnet-b0": 42.0,
    "efficientnet-b4": 124.0,
    "swin-t": 65.0,
    "resnext101-layer2": 84.0,
    "resnext101-layer3": 795.0,
    "resnext101": 1193.0,
}
# guess in bfloat16: between a hundredth and a tenth of what data sheets promise
GPU_MACS_PER_S = 5e12
# a training step relative to forward passes (lite0+xfeat, patches of 96 px, CPU: 121 and 34 ms)
TRAINING_FORWARDS = 3.6
FLOAT32_FORWARDS = 2.0  # a forward pass in float32, relative to one in bfloat16
READ_MS = 2.0  # decoding a JPEG of 640x480, one core
AUGMENT_MS = 17.0  # warping, recolouring and blurring it, one core
# core-seconds per image with known poses: tracks, landmarks, labels (300 images, 2 cores)
MAP_CORE_S = 0.7
HEAD_S = 40.0  # default head of a scene, 4 million samples, 2 cores; a GPU is not slower
ALLREDUCE_LATENCY_MS = 0.5  # per exchange of gradients, in addition to their volume
VALIDATION_IMAGES = 20  # of each scene, after every epoch
VALIDATION_MS = 15.0  # decoding and pose of one of them
LABEL_BYTES = 17  # of a landmark in an image: position (two of 8 bytes) and visibility
ADAM_BYTES = 16  # per weight: itself, its gradient and two moments, in float32
IMAGE_BYTES = 120e3  # of a JPEG of 640x480 on disk


@dataclass(frozen=True)
class PlanConfig:
    """The training to plan, and the machines."""

    scenes: int = ranged(100, 1, 10**6)
    images: int = ranged(1000, 1, 10**7)  # of each scene
    landmarks: int = ranged(1000, 1, 20_000)  # of each scene
    gpus: int = ranged(8, 0, 10**5)  # in total; 0: one machine without GPUs
    gpus_per_machine: int = ranged(8, 1, 64)
    cores: int = ranged(8, 1, 1024)  # per GPU, or of the one machine without GPUs
    backbone: str = chosen("resnext101-layer2", *BACKBONES)
    epochs: int = ranged(20, 1, 10**6)
    batch: int = ranged(4, 1, 10**5)  # images per step and GPU
    patches: int = ranged(8, 1, 1000)  # per image
    patch_px: int = ranged(96, 32, 4096, multiple=32)
    width: int = ranged(128, 4, 4096, multiple=4)  # of the heads
    dilated: bool = True  # heads of the paper's final variant
    passes: int = ranged(3, 1, 100)  # of a scene's feature buffer, including the plain one
    buffer_channels: int = ranged(128, 1, 4096)
    # cells of an image (kitchen, 1000 landmarks: 500 background, the rest near landmarks)
    buffer_cells: int = ranged(1460, 1, 100_000)
    order: str = chosen("shuffled", "rounds")  # a step is one batch, or one of every scene
    # of an image of 640x480 through the backbone; 0: measured or guessed value
    forward_ms: float = ranged(0.0, 0.0, 1e6)
    # at which gradients are exchanged: 1.2 for 10 Gb Ethernet, 100 and more for NVLink
    network_gb_s: float = ranged(10.0, 1e-3, 1e4)

    @property
    def workers(self) -> int:
        """GPUs, or the one machine without."""
        return max(self.gpus, 1)

    @property
    def scenes_per_step(self) -> int:
        return self.scenes if self.order == "rounds" else 1


@dataclass(frozen=True)
class Phase:
    """One phase of the work, with its wall-clock `hours` and the reason for them."""

    name: str
    workers: str
    hours: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """The phases of a training in order, memory by place, the numbers behind them, and notes on
    what is not measured."""

    phases: tuple[Phase, ...]
    memory_gb: dict[str, float]
    numbers: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    @property
    def hours(self) -> float:
        return sum(phase.hours for phase in self.phases)


@dataclass(frozen=True)
class Counts:
    """Counted on the networks: multiplications, weights, and bytes kept for the backward pass."""

    patch_macs: float  # of the backbone
    image_macs: float  # of the backbone, for an image of 640x480
    weights: float  # of the backbone
    head_macs: float  # of one patch
    head_weights: float  # of one scene's head
    patch_bytes: float  # of backbone and head, in half precision


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of one training step; images are loaded while the one before is computed."""

    compute: float
    load: float
    exchange: float

    @property
    def total(self) -> float:
        return max(self.compute, self.load) + self.exchange


def plan(config: PlanConfig, counts: Counts | None = None) -> Plan:
    """Time and memory of the whole: map the scenes, train the backbone on them, then teach each
    scene a head of its own."""
    counts = counts or count(config)
    forward_ms, notes = forward(config, counts)
    step = step_time(config, counts, forward_ms)
    batches_per_scene = math.ceil(config.images / (config.batch * config.workers))
    steps = config.epochs * batches_per_scene * config.scenes // config.scenes_per_step
    phases = _phases(config, steps, step, forward_ms)
    numbers = {
        "steps": steps,
        "step_ms": step.total,
        "forward_ms": forward_ms,
        "exchanged_mb": _exchanged_bytes(config, counts) / 1e6,
        "busy": step.compute / step.total,
        "gpu_hours": config.workers * sum(phase.hours for phase in phases[1:]),
    }
    if step.load > step.compute:
        cores = math.ceil(config.cores * step.load / step.compute)
        notes = (
            *notes,
            f"reading images takes longer than computing: {cores} cores per GPU would keep up",
        )
    return Plan(phases, memory(config, counts), numbers, notes)


def forward(config: PlanConfig, counts: Counts) -> tuple[float, tuple[str, ...]]:
    """Milliseconds of one image through the backbone, and notes on where they are from."""
    if config.forward_ms > 0:
        return config.forward_ms, ()
    if config.gpus:
        guess_ms = 1e3 * counts.image_macs / GPU_MACS_PER_S
        return guess_ms, (
            f"{guess_ms:.1f} ms per image is a guess ({counts.image_macs / 1e9:.0f} G "
            f"multiplications at {GPU_MACS_PER_S / 1e12:.0f} T a second); measure it with sld "
            "bench backbones --device cuda, and give --forward-ms",
        )
    if config.backbone not in CPU_FORWARD_MS:
        raise SldError(
            f"backbone {config.backbone} was not measured without a GPU; measure it with sld "
            "bench backbones, and give --forward-ms"
        )
    note = "milliseconds were measured on 2 cores and scaled to yours"
    return CPU_FORWARD_MS[config.backbone] * 2 / config.cores, (note,)


def step_time(config: PlanConfig, counts: Counts, forward_ms: float) -> StepTime:
    """Every worker takes `batch` images of one scene (order "rounds": of each scene), then
    gradients are averaged."""
    images = config.batch * config.scenes_per_step
    macs = images * config.patches * (counts.patch_macs + counts.head_macs)
    exchange_ms = 0.0
    if config.workers > 1:
        sent_gb = ring_bytes(_exchanged_bytes(config, counts), config.workers) / 1e9
        exchange_ms = ALLREDUCE_LATENCY_MS + 1e3 * sent_gb / config.network_gb_s
    return StepTime(
        compute=TRAINING_FORWARDS * macs * forward_ms / counts.image_macs,
        load=images * (READ_MS + AUGMENT_MS) / config.cores,
        exchange=exchange_ms,
    )


def _exchanged_bytes(config: PlanConfig, counts: Counts) -> float:
    return 4 * (counts.weights + config.scenes_per_step * counts.head_weights)


def ring_bytes(exchanged: float, workers: int) -> float:
    """Bytes that each worker sends when `workers` average `exchanged` bytes in a ring."""
    return 2 * (workers - 1) / workers * exchanged


def _phases(config: PlanConfig, steps: int, step: StepTime, forward_ms: float) -> tuple[Phase, ...]:
    images = config.scenes * config.images
    cores = config.cores * config.workers
    workers = f"{config.gpus} GPUs" if config.gpus else f"{config.cores} cores"
    scenes_per_worker = math.ceil(config.scenes / config.workers)
    validation_s = READ_MS + VALIDATION_MS + FLOAT32_FORWARDS * forward_ms
    validation_s *= VALIDATION_IMAGES / 1e3
    read_ms = (READ_MS + (config.passes - 1) * AUGMENT_MS) / config.cores
    buffer_s = config.images * (read_ms + config.passes * forward_ms) / 1e3
    return (
        Phase(
            "map the scenes",
            f"{cores} cores",
            images * MAP_CORE_S / cores / 3600,
            f"{images} images with poses, {MAP_CORE_S:.2f} core-s each",
        ),
        Phase(
            "train the backbone",
            workers,
            steps * step.total / 3.6e6,
            f"{steps} steps of {step.total:.0f} ms: {step.compute:.0f} compute, {step.load:.0f} "
            f"load (in parallel), {step.exchange:.1f} exchange",
        ),
        Phase(
            "validate it",
            workers,
            config.epochs * scenes_per_worker * validation_s / 3600,
            f"after every epoch, {VALIDATION_IMAGES} images of each scene, {validation_s:.1f} s "
            "per scene",
        ),
        Phase(
            "fill buffers",
            workers,
            scenes_per_worker * buffer_s / 3600,
            f"one scene per worker: {config.images * config.passes} images, {buffer_s:.0f} s",
        ),
        Phase(
            "train heads",
            workers,
            scenes_per_worker * HEAD_S / 3600,
            f"one scene per worker: {HEAD_S:.0f} s",
        ),
    )


def memory(config: PlanConfig, counts: Counts) -> dict[str, float]:
    """Gigabytes by place."""
    cells = (config.patch_px // 8) ** 2
    # in order "rounds", heads go forward and backward one scene after the other
    patches = config.batch * config.patches
    # scores, targets, weights and a gradient, in float32
    heatmaps = patches * config.landmarks * cells * 4 * 4
    weights = counts.weights + config.scenes * counts.head_weights
    buffer = config.images * config.passes * config.buffer_cells * (2 * config.buffer_channels + 17)
    on_machine = min(config.gpus_per_machine, config.workers)
    # every process holds the labels of all scenes
    labels = on_machine * config.scenes * config.images * config.landmarks * LABEL_BYTES
    bytes_by_place = {
        "each worker: backbone, heads, optimiser": ADAM_BYTES * weights,
        "each worker: gradients to exchange": 4 * weights if config.workers > 1 else 0.0,
        "each worker: activations": patches * counts.patch_bytes,
        "each worker: heatmaps": heatmaps,
        "each machine: labels": labels,
        "each machine: feature buffers": on_machine * buffer,
        "disk: images": config.scenes * config.images * IMAGE_BYTES,
        "disk: one checkpoint": 0.75 * ADAM_BYTES * weights,  # without gradients
    }
    return {place: size / 1e9 for place, size in bytes_by_place.items()}


def count(config: PlanConfig) -> Counts:
    """Count the networks as they are trained, without computing anything."""
    import torch

    from sld_core.models.backbone import RANDOM, trainable
    from sld_core.models.heatmap_head import TrainingHead
    from sld_core.models.macs import count_macs

    network = trainable(config.backbone, RANDOM).to("meta")
    patch = torch.zeros(1, 3, config.patch_px, config.patch_px)
    image = torch.zeros(1, 3, 480, 640)
    features = network(patch.to("meta"))
    head = TrainingHead(features.shape[1], config.landmarks, config.width, config.dilated)
    head = head.to("meta")
    return Counts(
        patch_macs=count_macs(network, patch),
        image_macs=count_macs(network, image),
        weights=sum(p.numel() for p in network.parameters()),
        head_macs=count_macs(head, features.detach()),
        head_weights=sum(p.numel() for p in head.parameters()),
        patch_bytes=kept_bytes(torch.nn.Sequential(network, head), patch.to("meta")) / 2,
    )


def kept_bytes(network, image_B3HW) -> int:
    """Bytes that autograd keeps of a forward pass for the backward pass, without the weights."""
    import torch

    own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes(), tensor  # held, so that its address stays taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image_B3HW)
    return sum(size for size, _ in kept.values())


def lines(config: PlanConfig, made: Plan) -> Sequence[str]:
    """The plan as text."""
    out = [
        f"{config.scenes} scenes x {config.images} images, {config.landmarks} landmarks each; "
        f"{config.backbone}, {config.epochs} epochs"
    ]
    for phase in made.phases:
        out.append(f"{phase.name:20s} {phase.hours:10.2f} h  on {phase.workers:12s} {phase.reason}")
    out.append(
        f"{'total':20s} {made.hours:10.2f} h  {made.numbers['gpu_hours']:.1f} worker-hours without "
        f"mapping; workers compute {made.numbers['busy']:.0%} of each training step"
    )
    out += [f"{gb:10.2f} GB  {place}" for place, gb in made.memory_gb.items()]
    return out + [f"note: {note}" for note in made.notes]
