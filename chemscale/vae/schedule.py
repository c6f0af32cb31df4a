"""The 1Cycle schedule of learning rate and momentum (Smith & Topin 2019), as PyTorch's ``OneCycleLR`` has it."""

from __future__ import annotations

import math


def _cycle(step: int, total: int, warmup: float, start: float, top: float, end: float) -> float:
    """A value on its way from `start` to `top` and on to `end`, along cosines, as in PyTorch's ``OneCycleLR``."""
    turn = max(warmup * total - 1.0, 1e-9)
    if step <= turn:
        return top + (start - top) * (1 + math.cos(math.pi * step / turn)) / 2
    progress = min(1.0, (step - turn) / max(1e-9, total - 1.0 - turn))
    return end + (top - end) * (1 + math.cos(math.pi * progress)) / 2


def one_cycle(step: int, total: int, peak: float, warmup: float) -> float:
    """Learning rate of the 1Cycle schedule (Smith & Topin 2019): cosine from peak/25 up and down to peak/2.5e5."""
    return _cycle(step, total, warmup, peak / 25, peak, peak / 2.5e5)


def one_cycle_momentum(step: int, total: int, warmup: float) -> float:
    """Adam's first decay rate beside :func:`one_cycle`: 0.95 down to 0.85 at the peak, and back."""
    return _cycle(step, total, warmup, 0.95, 0.85, 0.95)
