"""The late phase of a training: what may change once the latents have found their axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def partly(share: float | Tensor) -> bool:
    """Whether a share is less than 1; that of a recorded step is, and cannot be looked at."""
    return not isinstance(share, (int, float)) or share < 1


@dataclass(frozen=True)
class LatePhase:
    """What may change once the axes have settled.

    Attributes
    ----------
    reconstruction_factor : float
        Factor on the reconstruction.
    auxiliary, rest : bool
        Whether reconstruction teaches w, and whether the pixels no group claims teach z and w.
    settled : bool
        Whether decoders read the latents of `given_late`.
    opening : float
        How far the latents of `given_cool` and `given_warm` are read of the other stars, too; 0 to 1.
    entering : float
        Weight, in decoders that read such latents, of the stars that they are read of; 0 to 1.
    """

    reconstruction_factor: float | Tensor = 1.0
    auxiliary: bool = False
    rest: bool = False
    settled: bool = True
    opening: float | Tensor = 1.0
    entering: float | Tensor = 1.0

    def dials(self) -> dict[str, float]:
        """What changes from step to step."""
        names = ("reconstruction_factor", "opening", "entering")
        return {name: float(getattr(self, name)) for name in names}

    def kind(self) -> tuple[bool, ...]:
        """What decides which terms an objective has."""
        return (self.auxiliary, self.rest, self.settled, partly(self.opening), partly(self.entering))

    def turned(self, dials: Mapping[str, float | Tensor]) -> LatePhase:
        """The same phase with other values for :meth:`dials`; shares that are whole stay numbers."""
        return replace(
            self,
            reconstruction_factor=dials["reconstruction_factor"],
            opening=dials["opening"] if partly(self.opening) else 1.0,
            entering=dials["entering"] if partly(self.entering) else 1.0,
        )


#: Before the axes have settled, in a training that knows no late phase.
EARLY = LatePhase()
