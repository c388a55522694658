"""How much a network computes."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_macs(network, *inputs) -> int:
    """Multiply-accumulates of convolutions, matrices and attention; nothing is computed, and
    `network` is left as it was."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta")(*(x.to("meta") for x in inputs))
    return counter.get_total_flops() // 2
