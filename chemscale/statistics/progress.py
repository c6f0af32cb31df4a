"""When a fit stops, and what it tells of itself on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from chemscale.statistics.determined import determined
from chemscale.statistics.outliers import Rejection

#: What :attr:`Trace.reason` says, in words.
REASONS = {
    "angle": "the determined subspace settled",
    "loglike": "the likelihood settled",
    "passes": "it reached the largest number of passes",
}
#: Told after each pass: its number, the largest number there may be, the estimated angle to the solution (radian;
#: infinite where it is not known).
Told = Callable[[int, int, float], None]
#: Tolerances below this fraction of the statistical error of the determined axes also ask for a settled log-likelihood.
LOOSE = 0.1
#: The angle of a pass is taken to be at least this fraction of that of the one before.
LEAST_GAIN = 0.25
#: Above this fraction it shrinks so slowly that the one before has to be small enough, too.
SLOW_GAIN = 0.5
#: Passes in a row in which axes have to be determined to count as such: errors near the limit come and go.
STEADY = 3


def in_words(
    converged: bool, reason: str, passes: int, angle: Sequence[float], error: np.ndarray, determined: int
) -> str:
    """How a fit ended: estimated angles of its passes, errors (K,) of its axes, and how many the data determine."""
    end = REASONS.get(reason, "it was stopped")
    if determined and angle and np.isfinite(angle[-1]):
        end += f" (estimated angle {angle[-1]:.2g} rad, its statistical error {error[determined - 1]:.2g})"
    word = "converged" if converged else "not converged"
    return f"{word} after {passes} passes: {end}; {determined} of {len(error)} components are determined"


@dataclass
class Trace:
    """What happened in a fit, one entry per pass over the data."""

    loglike: list[float] = field(default_factory=list)
    angle: list[float] = field(default_factory=list)
    error: np.ndarray | None = None  # (K,) statistical error of the subspaces of the first 1, ..., K axes
    rejected: np.ndarray | None = None  # (P,) outliers of every pixel in the last pass
    rejected_stars: int = 0
    anomalous: int = 0
    reason: str = ""
    counts: list[int] = field(default_factory=list)  # determined axes by the errors of each pass

    @property
    def converged(self) -> bool:
        """Whether it stopped for another reason than its largest number of passes."""
        return self.reason in ("angle", "loglike")

    @property
    def determined(self) -> int:
        """Axes that the data determine, by every one of the last passes."""
        return min(self.counts[-STEADY:], default=0)

    def count(self, error: np.ndarray) -> int:
        """Note the errors (K,) of the axes in a pass; how many axes are determined, at least one."""
        self.error = error
        self.counts.append(determined(error))
        return max(self.determined, 1)

    @property
    def statistical_error(self) -> float:
        """Error (radian) of the axes that the data determine: pi/2 where there is none, 0 before it is known."""
        if self.error is None:
            return 0.0
        return float(self.error[self.determined - 1]) if self.determined else np.pi / 2

    def add(self, stats: dict[str, np.ndarray], angle: float) -> None:
        """The sums of a pass, and the angle to the solution that they say."""
        self.loglike.append(float(stats["loglike"]))
        self.angle.append(min(float(angle), np.pi / 2) if np.isfinite(angle) else np.inf)
        if "rejected" in stats:
            self.rejected = stats["rejected"]
            self.rejected_stars, self.anomalous = int(stats["rejected_stars"]), int(stats["anomalous"])


@dataclass(frozen=True)
class Stop:
    """When a fit stops.

    Parameters
    ----------
    tol : float
        Estimated largest principal angle (radian) of the determined subspace to the solution.
    most : int
        Largest number of passes.
    loglike_tol : float
        Relative change of the log-likelihood over three passes.
    rejection : Rejection, optional
        Outliers to leave out on the way.
    told : callable, optional
        Told after each pass.
    certain : bool
        Whether the estimates of two passes have to agree that the angle is below `tol`.
    """

    tol: float
    most: int
    loglike_tol: float
    rejection: Rejection | None = None
    told: Told | None = None
    certain: bool = True

    def reached(self, trace: Trace) -> bool:
        """Tell of the last pass, and say whether it was the last; the reason goes to `trace`."""
        done = len(trace.loglike)
        if self.told is not None:
            self.told(done, self.most, trace.angle[-1])
        before = trace.angle[-2] if done > 1 else np.pi / 2  # the first estimate alone is not believed
        before = before if np.isfinite(before) else 0.0
        angle = trace.angle[-1]
        if self.certain:
            angle = max(angle, before * (LEAST_GAIN if angle < SLOW_GAIN * before else 1.0))
        last = trace.loglike[-3:]
        size = max(abs(last[-1]), 1.0)
        settled = done > 1 and abs(last[-1] - last[-2]) <= max(self.loglike_tol, self.tol**2) * size
        if angle < self.tol and (self.tol > LOOSE * trace.statistical_error or settled):
            trace.reason = "angle"
        elif len(last) == 3 and max(last) - min(last) <= self.loglike_tol * size:
            trace.reason = "loglike"
        elif done >= self.most:
            trace.reason = "passes"
        return bool(trace.reason)
