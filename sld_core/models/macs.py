"""The cost of a network."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_macs(network, *inputs) -> int:
    """Multiply-accumulates of convolutions, matrices and attention. Nothing is computed, and
    `network` stays as it is."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta")(*(x.to("meta") for x in inputs))
    return counter.get_total_flops() // 2
