"""What the steps of a training have in common: their random numbers, the losses of an epoch, how far it has come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Loss terms of so many steps are added up at a time: until then each is a number on the device.
FOLDED = 256
#: Fields of the progress that were renamed: old -> new.
RENAMED_PROGRESS = {"finish_step": "finetune_step"}


@dataclass
class TrainingProgress:
    """Counters of a training that a checkpoint carries."""

    step: int = 0
    finetune_step: int = 0
    pretrained: bool = False
    best: float = math.inf
    stale: int = 0
    stopped: bool = False
    curves: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"best": None if math.isinf(self.best) else self.best}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TrainingProgress:
        """Progress from JSON; old names are read.

        >>> TrainingProgress.from_dict({"step": 3, "best": None, "finish_step": 2}).finetune_step
        2
        """
        values = {RENAMED_PROGRESS.get(k, k): v for k, v in raw.items()}
        return cls(**(values | {"best": math.inf if raw["best"] is None else raw["best"]}))


def step_seed(seed: int, step: int) -> int:
    """Seed of the random numbers of one step of a training, the same for any number of processes."""
    state = np.random.SeedSequence([seed, step, 0]).generate_state(2, np.uint32)
    return int(state[0]) << 31 ^ int(state[1])


def step_generator(seed: int, device: torch.device) -> torch.Generator:
    """Random numbers of one step. A GPU draws its own: those of the host would have to be waited for in every step."""
    return torch.Generator(device).manual_seed(seed)


class LossTerms:
    """Loss terms of the steps of an epoch; they stay on the device until :meth:`means` asks for them."""

    def __init__(self) -> None:
        self.steps = 0
        self._found: dict[str, list[Tensor]] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count one step."""
        self.steps += 1
        for name, value in terms.items():
            values = self._found.setdefault(name, [])
            values.append(value.detach())
            if len(values) >= FOLDED:
                values[:] = [torch.stack([v.double() for v in values]).sum()]

    def means(self) -> dict[str, float]:
        """Mean over the steps; the one time in an epoch that the host waits for a GPU."""
        if not self._found:
            return {}
        sums = torch.stack([torch.stack([v.double() for v in values]).sum() for values in self._found.values()])
        return dict(zip(self._found, (sums / self.steps).tolist(), strict=True))
