"""The plan of a training of many scenes, checked by hand."""

import argparse
import json

import pytest
import torch
from torch import nn

from sld_core.commands import train_plan
from sld_core.training.plan import (
    AUGMENT_MS,
    FLOAT32_FORWARDS,
    HEAD_S,
    READ_MS,
    TRAINING_FORWARDS,
    VALIDATION_IMAGES,
    VALIDATION_MS,
    Counts,
    PlanConfig,
    count,
    kept_bytes,
    plan,
    ring_bytes,
)
from sld_core.types import SldError

COUNTS = Counts(
    patch_macs=3e7, image_macs=1e9, weights=1e6, head_macs=2e7, head_weights=5e5, patch_bytes=1e6
)
SMALL = dict(
    scenes=10,
    images=100,
    gpus=2,
    epochs=5,
    batch=5,
    patches=8,
    forward_ms=20.0,
    cores=100,
    network_gb_s=1.0,
)


def test_hours_by_hand():
    made = plan(PlanConfig(**SMALL), COUNTS)
    _, backbone, validation, buffers, heads = made.hours.values()
    steps = 5 * 10 * 10  # epochs, scenes, batches of 5 images on each of 2 GPUs
    compute_ms = TRAINING_FORWARDS * 5 * 8 * (3e7 + 2e7) * 20 / 1e9
    exchange_ms = 0.5 + 4 * 1.5e6 / 1e9 * 1e3  # with two workers each sends the gradients once
    assert made.numbers["steps"] == steps
    assert made.numbers["step_ms"] == pytest.approx(compute_ms + exchange_ms)
    assert backbone == pytest.approx(steps * (compute_ms + exchange_ms) / 3.6e6)
    # 5 epochs, 5 scenes on each GPU
    assert validation == pytest.approx(
        5 * 5 * VALIDATION_IMAGES * (READ_MS + VALIDATION_MS + FLOAT32_FORWARDS * 20) / 3.6e6
    )
    assert buffers == pytest.approx(
        5 * 100 * ((READ_MS + 2 * AUGMENT_MS) / 100 + 3 * 20) / 3.6e6
    )  # 5 scenes on each GPU
    assert heads == pytest.approx(5 * HEAD_S / 3600)
    assert made.notes == ()


def test_memory_by_hand():
    made = plan(PlanConfig(**SMALL, landmarks=500, buffer_cells=1000), COUNTS).memory_gb
    assert made["each worker: backbone, heads, optimiser"] == pytest.approx(
        16 * (1e6 + 10 * 5e5) / 1e9
    )
    assert made["each worker: activations"] == pytest.approx(40 * 1e6 / 1e9)
    assert made["each worker: heatmaps"] == pytest.approx(40 * 500 * 144 * 16 / 1e9)
    assert made["each machine: labels"] == pytest.approx(2 * 10 * 100 * 500 * 17 / 1e9)
    assert made["each machine: feature buffers"] == pytest.approx(
        2 * 100 * 3 * 1000 * (256 + 17) / 1e9
    )


def test_how_cost_grows():
    def hours(**change):
        return plan(PlanConfig(**{**SMALL, **change}), COUNTS).hours["train the backbone"]

    assert hours(scenes=30) == pytest.approx(3 * hours())
    assert hours(images=200) == pytest.approx(2 * hours())
    assert hours() / 2 < hours(gpus=4) < hours()  # faster, but not twice: there is more to exchange
    assert hours(gpus=1) < 2 * hours()
    # the heads' weights are there for every scene, activations for the one at work
    few, many = (
        plan(PlanConfig(**{**SMALL, "scenes": scenes}), COUNTS).memory_gb for scenes in (10, 30)
    )
    assert many["each worker: activations"] == few["each worker: activations"]
    optimiser = "each worker: backbone, heads, optimiser"
    assert many[optimiser] > 2 * few[optimiser]


def test_both_orders_see_every_image_and_rounds_exchange_less_often():
    shuffled, rounds = (
        plan(PlanConfig(**SMALL, order=order), COUNTS) for order in ("shuffled", "rounds")
    )
    assert shuffled.numbers["steps"] == 10 * rounds.numbers["steps"]
    assert rounds.hours["train the backbone"] < shuffled.hours["train the backbone"]


def test_a_ring_of_workers_sends_at_most_twice():
    assert [ring_bytes(100, n) for n in (1, 2, 4)] == [0, 100, 150]


def test_too_few_cores_are_told():
    made = plan(PlanConfig(**SMALL | {"cores": 1, "forward_ms": 1.0}), COUNTS)
    assert made.numbers["step_ms"] > 5 * (READ_MS + AUGMENT_MS)
    assert "reading images takes longer" in made.notes[0]


def test_what_a_backward_pass_needs_is_counted():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).to("meta")
    # the input for the first layer; the rectified for the second and for the ReLU itself
    assert kept_bytes(network, torch.zeros(1, 3, 8, 8, device="meta")) == (3 + 4) * 64 * 4


def test_counts_of_a_real_network():
    counts = count(PlanConfig(backbone="xfeat", landmarks=100, width=16, dilated=False))
    assert counts.head_macs == 144 * (
        64 * 64 * 2 + 64 * 100
    )  # 12 x 12 cells, a skip block and the last layer
    assert counts.head_weights == 2 * (64 * 64 + 64) + 64 * 100 + 100
    assert counts.image_macs / counts.patch_macs == pytest.approx(640 * 480 / 96**2, rel=0.05)


def test_the_command_prints_and_writes_it(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    train_plan.add(parser.add_subparsers())
    out = tmp_path / "plan.json"
    given = "plan --scenes 100 --gpus 8 --backbone xfeat --no-dilated --json"
    args = parser.parse_args([*given.split(), str(out)])
    args.run(args)
    text = capsys.readouterr().out
    assert "100 scenes x 1000 images" in text and "is a guess" in text and "8 GPUs" in text
    assert len(json.loads(out.read_text())["hours"]) == 5
    with pytest.raises(SldError, match="not measured without a GPU"):
        args = parser.parse_args(["plan", "--gpus", "0", "--backbone", "xfeat"])
        args.run(args)
    with pytest.raises(SldError, match="epochs"):
        args = parser.parse_args(["plan", "--epochs", "none"])
        args.run(args)
