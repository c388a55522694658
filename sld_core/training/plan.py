"""Estimates the time and memory of training on many scenes; nothing is trained.

Multiplications, weights and activations are counted on the networks themselves. The other unit
costs are measured, or guessed where a note says so. docs/distributed.md has the formulae."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
class Plan:
    """Wall-clock hours of each phase in order, memory by place, the numbers behind them, and notes
    on what is not measured."""

    hours: dict[str, float]
    memory_gb: dict[str, float]
    numbers: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counts:
    """Counted on the networks: multiplications, weights, and bytes kept for the backward pass."""

    patch_macs: float  # of the backbone
    image_macs: float  # of the backbone, for an image of 640x480
    weights: float  # of the backbone
    head_macs: float  # of one patch
    head_weights: float  # of one scene's head
    patch_bytes: float  # of backbone and head, in half precision


def plan(config: PlanConfig, counts: Counts | None = None) -> Plan:
    """Time and memory of the whole: map the scenes, train the backbone on them, then teach each
    scene a head of its own."""
    counts = counts or count(config)
    forward_ms, notes = forward(config, counts)
    step = step_numbers(config, counts, forward_ms)
    hours = phase_hours(config, step["steps"] * step["step_ms"] / 3.6e6, forward_ms)
    worker_hours = config.workers * (sum(hours.values()) - hours["map the scenes"])
    if step["load_ms"] > step["compute_ms"]:
        cores = math.ceil(config.cores * step["load_ms"] / step["compute_ms"])
        note = f"reading images takes longer than computing: {cores} cores per GPU would keep up"
        notes = (*notes, note)
    numbers = step | {"forward_ms": forward_ms, "worker_hours_without_mapping": worker_hours}
    return Plan(hours, memory(config, counts), numbers, notes)


def forward(config: PlanConfig, counts: Counts) -> tuple[float, tuple[str, ...]]:
    """Milliseconds of one image through the backbone, and notes on where they are from."""
    if config.forward_ms > 0:
        return config.forward_ms, ()
    if config.gpus:
        note = (
            f"forward_ms is a guess: {GPU_MACS_PER_S / 1e12:.0f} T multiplications a second; "
            "measure it with sld bench backbones --device cuda, and give --forward-ms"
        )
        return 1e3 * counts.image_macs / GPU_MACS_PER_S, (note,)
    if config.backbone not in CPU_FORWARD_MS:
        raise SldError(
            f"backbone {config.backbone} was not measured without a GPU; measure it with sld "
            "bench backbones, and give --forward-ms"
        )
    note = "forward_ms was measured on 2 cores and scaled to yours"
    return CPU_FORWARD_MS[config.backbone] * 2 / config.cores, (note,)


def step_numbers(config: PlanConfig, counts: Counts, forward_ms: float) -> dict[str, float]:
    """The steps of training the backbone, and the milliseconds of one. Every worker takes `batch`
    images of one scene (order "rounds": of each scene), while the next ones are loaded; then
    gradients are averaged."""
    batches_per_scene = math.ceil(config.images / (config.batch * config.workers))
    images = config.batch * config.scenes_per_step
    macs = images * config.patches * (counts.patch_macs + counts.head_macs)
    compute_ms = TRAINING_FORWARDS * macs * forward_ms / counts.image_macs
    load_ms = images * (READ_MS + AUGMENT_MS) / config.cores
    exchanged = 4 * (counts.weights + config.scenes_per_step * counts.head_weights)
    exchange_ms = 0.0
    if config.workers > 1:
        sent_gb = ring_bytes(exchanged, config.workers) / 1e9
        exchange_ms = ALLREDUCE_LATENCY_MS + 1e3 * sent_gb / config.network_gb_s
    step_ms = max(compute_ms, load_ms) + exchange_ms
    return {
        "steps": config.epochs * batches_per_scene * config.scenes // config.scenes_per_step,
        "step_ms": step_ms,
        "compute_ms": compute_ms,
        "load_ms": load_ms,
        "exchange_ms": exchange_ms,
        "exchanged_mb": exchanged / 1e6,
        "busy": compute_ms / step_ms,
    }


def ring_bytes(exchanged: float, workers: int) -> float:
    """Bytes that each worker sends when `workers` average `exchanged` bytes in a ring."""
    return 2 * (workers - 1) / workers * exchanged


def phase_hours(config: PlanConfig, backbone_hours: float, forward_ms: float) -> dict[str, float]:
    """Hours of each phase: mapping on all cores; validation of every scene after each epoch; the
    buffer and the head of each scene, one scene per worker."""
    map_s = config.scenes * config.images * MAP_CORE_S / (config.cores * config.workers)
    validation_ms = READ_MS + VALIDATION_MS + FLOAT32_FORWARDS * forward_ms
    read_ms = (READ_MS + (config.passes - 1) * AUGMENT_MS) / config.cores
    buffer_s = config.images * (read_ms + config.passes * forward_ms) / 1e3
    rounds = math.ceil(config.scenes / config.workers)
    return {
        "map the scenes": map_s / 3600,
        "train the backbone": backbone_hours,
        "validate it": config.epochs * rounds * VALIDATION_IMAGES * validation_ms / 3.6e6,
        "fill buffers": rounds * buffer_s / 3600,
        "train heads": rounds * HEAD_S / 3600,
    }


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


def lines(config: PlanConfig, made: Plan) -> list[str]:
    """The plan as a table of text."""
    workers = f"{config.gpus} GPUs with {config.cores} cores each"
    if not config.gpus:
        workers = f"{config.cores} cores"
    rows = [(hours, "h", phase) for phase, hours in made.hours.items()]
    rows.append((sum(made.hours.values()), "h", "all phases"))
    rows += [(gb, "GB", place) for place, gb in made.memory_gb.items()]
    rows += [(number, "", name) for name, number in made.numbers.items()]
    return [
        f"{config.scenes} scenes x {config.images} images, {config.landmarks} landmarks each; "
        f"{config.backbone}, {config.epochs} epochs; {workers}",
        *(f"{value:12.2f} {unit:2s}  {what}" for value, unit, what in rows),
        *(f"note: {note}" for note in made.notes),
    ]
