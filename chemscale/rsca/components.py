"""How many components a metric needs: chosen by leave-one-cluster-out among the leading ones of one wide basis.

Components come ordered by variance, so the leading k of a fit with more are those of a fit with k to within the
statistical error: no spectrum is read again to compare numbers of components, only coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.uncertainty import bootstrap

#: Components of the basis that the leading ones are chosen from.
WIDE = 30
#: Field stars that are compared, evenly spaced, at most.
FIELD = 50_000


def steps(n_components: int) -> list[int]:
    """Numbers of components to try: every one up to 10, then in growing strides, `n_components` included."""
    tried = [*range(2, min(10, n_components) + 1), *range(12, min(30, n_components) + 1, 2)]
    tried += list(range(35, n_components + 1, 5))
    return sorted({*tried, n_components})


@dataclass(frozen=True)
class Choice:
    """Rates by number of components, and the number chosen.

    Attributes
    ----------
    components : int
        The number with the lowest rate; of equal ones the smallest.
    tried : tuple of int
    rates, errors : tuple of float
        Global doppelganger rate of RSCA, every feature, leave-one-cluster-out, and its standard error over clusters.
    """

    components: int
    tried: tuple[int, ...]
    rates: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """In words."""
        at, wide = self.tried.index(self.components), self.tried[-1]
        return (
            f"{self.components} of {wide} components chosen by leave-one-cluster-out: rate {self.rates[at]:.4f} +- "
            f"{self.errors[at]:.4f}, with {wide} {self.rates[-1]:.4f}"
        )


def choose_components(evaluation: Evaluation) -> Choice:
    """The number of leading coordinates with which RSCA has the lowest rate on clusters it has not seen.

    Reads coordinates only, of at most :data:`FIELD` field stars where the field is in memory: seconds.
    """
    engine = evaluation.thinned(FIELD) if isinstance(evaluation.field, np.ndarray) else evaluation
    ks = steps(engine.members.shape[1])
    found = [engine.rates("rsca", k=k) for k in ks]
    rates = tuple(r.overall for r in found)
    best = ks[int(np.argmin(rates))]
    return Choice(best, tuple(ks), rates, tuple(bootstrap(r)[0] for r in found))
