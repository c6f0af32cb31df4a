"""Coordinates in one form, and the metrics that clusters give in them: the parts of :mod:`chemscale.rsca.auto`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from scipy.linalg import eigh

from chemscale.rsca.belonging import SLACK_UNKNOWN, robust_scatter
from chemscale.rsca.companions import SiblingGroups
from chemscale.rsca.detrending import SelfDetrending
from chemscale.rsca.doppelganger import Evaluation, evenly
from chemscale.rsca.scales import pooled_sigma

#: Variance given to an ignored direction, in units of the field's along it: next to none of it is left in a metric.
IGNORED = 10.0
#: The same for what extinction and velocity do: siblings share both, so no cross-validation would drop it.
COVARIATE_EXTENT = 1000.0
#: Leading features that stand for chemistry where no label does, unless they follow a covariate by this correlation.
HELD_FEATURES, LEAST_FOLLOWING = 3, 0.1
#: Shrinkage towards the noise of the metric that finds the axes of :class:`SelfDetrended`.
AXES_SHRINKAGE = 0.5


@dataclass(frozen=True, order=True)
class Candidate:
    """One way to make a metric: coordinates, how many of them, shrinkage and towards what, dimensions kept.

    `kind` is the target of the shrinkage (a key of :attr:`Representation.targets`), "mad" for scales from the median
    absolute deviation as in the paper, or "none". `ignore_continuum`: what a continuum error does is left out.
    """

    representation: str
    k: int
    shrinkage: float
    kind: str
    n_features: int
    ignore_continuum: bool = False

    def label(self) -> str:
        """Short text for tables."""
        kind = "MAD" if self.kind == "mad" else f"shrink {self.shrinkage:g} to {self.kind}"
        ignore = ", continuum ignored" if self.ignore_continuum else ""
        return f"{self.representation}, K = {self.k}, {kind}, {self.n_features} kept{ignore}"


def shrunk_metric(
    within: np.ndarray, field_covariance: np.ndarray, target: np.ndarray | None = None, shrinkage: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Axes and scales from a within-cluster covariance.

    Solves ``W a = w C a`` (sphering and rotation in one step), with W shrunk towards a target, and scales
    axis i by ``sqrt((1 - w_i) / w_i)``, which is 1 / sigma_r of eq. (4).

    Parameters
    ----------
    within, field_covariance : (k, k)
    target : (k, k), optional
    shrinkage : float in [0, 1)
        Weight of the target.

    Returns
    -------
    matrix : (k, k)
        Maps centred coordinates to features, most scaled first.
    sigma : (k,)
        Root of the w_i.
    """
    if shrinkage and target is not None:
        within = (1 - shrinkage) * within + shrinkage * target
    w, axes = eigh(within, field_covariance)
    w = np.maximum(w, 1e-12)
    return axes * np.sqrt(np.maximum(1 - w, 0) / w), np.sqrt(w)


def widened(within: np.ndarray, field_covariance: np.ndarray, directions: np.ndarray, extent: float) -> np.ndarray:
    """A covariance (k, k) with `extent` times the field's variance added along each row of `directions` (m, k)."""
    size = np.einsum("ij,ij->i", directions, np.linalg.solve(field_covariance, directions.T).T)
    scaled = directions[size > 0] / np.sqrt(size[size > 0])[:, None]
    return within + extent * scaled.T @ scaled


def beyond_leading(directions: np.ndarray, within: np.ndarray, field_covariance: np.ndarray) -> np.ndarray:
    """Directions (m, k) of covariates without what the leading features, which hardly follow them, have in common.

    Coordinates hold much chemistry, and a covariate follows it a little, by chance or by where stars are. Where no
    label says so, the features that clusters tell most stand for chemistry: held as labels would be, unless they
    follow the covariate themselves.
    """
    axes = eigh(within, field_covariance)[1][:, :HELD_FEATURES]
    follows = directions @ axes  # correlations: directions are slopes on standardised covariates
    held = np.where(np.abs(follows) < LEAST_FOLLOWING, follows, 0.0)
    return directions - held @ axes.T @ field_covariance


def covariate_directions(
    coords: np.ndarray, covariates: Sequence[np.ndarray], held: Sequence[np.ndarray] = (), least: float = 0.01
) -> np.ndarray | None:
    """How coordinates change with extinction and velocity, at fixed labels: (m, K), or None if they do not.

    Parameters
    ----------
    coords : (n, K)
        Of field stars.
    covariates : sequence of (n,) arrays, NaN = missing
    held : sequence of (n,) arrays
        Labels whose linear effect is none of the covariates'.
    least : float
        Share of a covariate's variance that the coordinates must explain, beyond chance, for it to count.
    """
    out = []
    for x in covariates:
        columns = np.stack([x, *held], axis=1)
        good = np.isfinite(columns).all(axis=1) & np.isfinite(coords).all(axis=1)
        n = int(good.sum())
        if n < 10 * coords.shape[1] or np.std(x[good]) == 0:
            continue
        u = (columns[good] - columns[good].mean(axis=0)) / np.maximum(columns[good].std(axis=0), 1e-30)
        z = coords[good] - coords[good].mean(axis=0)
        fit = z @ np.linalg.lstsq(z, u[:, 0], rcond=None)[0]
        if np.mean(fit**2) > least + 3 * coords.shape[1] / n:
            out.append(np.linalg.lstsq(u, z, rcond=None)[0][0])
    return np.array(out) if out else None


def continuum_directions(components: np.ndarray, mean: np.ndarray, used: np.ndarray, degree: int = 2) -> np.ndarray:
    """What continuum errors do to coordinates: (n_segments * (degree + 1), K).

    A continuum wrong by a polynomial multiplies the spectrum by it. Each run of used pixels (a detector, an arm) has
    polynomials of its own; runs shorter than 5 % of the pixels have none.

    Parameters
    ----------
    components : (K, P)
        Orthonormal over the used pixels.
    mean : (P,)
    used : (P,) bool
    degree : int
    """
    pixels = np.flatnonzero(used)
    runs = np.split(pixels, np.flatnonzero(np.diff(pixels) > 20) + 1)
    out = []
    for run in runs:
        if len(run) < 0.05 * len(pixels):
            continue
        x = np.linspace(-1, 1, len(run))
        for order in range(degree + 1):
            shape = np.polynomial.legendre.Legendre.basis(order)(x)
            out.append(components[:, run] @ (mean[run] * shape))
    return np.array(out).reshape(-1, len(components))


@dataclass
class Representation:
    """Coordinates of the same stars in one form.

    Attributes
    ----------
    evaluation : Evaluation
        Holds field and members of this form, and the pair cuts.
    targets : dict of str to (K, K)
        Covariances the within-cluster covariance may be shrunk towards; none of them knows clusters. "noise": mean
        measurement covariance of the members' coordinates. "residual": field scatter at fixed labels.
    continuum : (m, K), optional
        Directions that metrics may ignore.
    weights : (n_members,), optional
        Weight of each member in the scatter: less for a noisy spectrum.
    nuisances : (m, K), optional
        Directions that every metric ignores: what extinction and velocity do to coordinates.
    siblings : SiblingGroups, optional
        Groups that are no clusters, at coordinates of this form: their scatter is learned from, too.
    hold_leading : bool
        No label of chemistry was held when the nuisances were measured: see :func:`beyond_leading`.
    slack : float
        How far out members count in full (:func:`chemscale.rsca.belonging.robust_scatter`).
    judge : Representation, optional
        The form of the same stars that says which of them belong; this one itself by default. Where siblings differ
        in temperature many a member looks like a stranger, unless labels take the difference out.
    """

    evaluation: Evaluation
    targets: dict[str, np.ndarray] = field(default_factory=dict)
    continuum: np.ndarray | None = None
    weights: np.ndarray | None = None
    nuisances: np.ndarray | None = None
    siblings: SiblingGroups | None = None
    hold_leading: bool = False
    slack: float = SLACK_UNKNOWN
    judge: Representation | None = None

    def __post_init__(self) -> None:
        e = self.evaluation
        self.groups, self.clusters, self.names = e.groups, e.clusters, e.names
        self._measure(e.members - e.moments.mean, e.moments.covariance, self.siblings, e.moments.mean)

    def _measure(
        self, centred: np.ndarray, covariance: np.ndarray, siblings: SiblingGroups | None, mean: np.ndarray
    ) -> None:
        """Members and other siblings that the scatter is measured on."""
        self.centred, self.covariance = centred, covariance
        weights = np.ones(len(centred)) if self.weights is None else self.weights
        self.sizes = np.array([len(g) for g in self.groups])
        self._number = np.unique(self.clusters, return_inverse=True)[1]
        self._stars, self._weights = centred, weights
        if siblings is not None:
            more = np.unique(siblings.groups, return_inverse=True)[1] + len(self.groups)
            self._number = np.r_[self._number, more]
            self._stars = np.concatenate([centred, siblings.coords - mean])
            self._weights = np.r_[weights, siblings.weights]
        self._found: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def view(self, left_out: Sequence[int]) -> Representation:
        """This form as it is when the clusters `left_out` are unknown: itself, where clusters do not shape it."""
        return self

    def with_field_of(self, evaluation: Evaluation) -> Self:
        """The same form with the field stars of another evaluation, such as a thinned one."""
        return replace(self, evaluation=evaluation)

    def rows(self, j: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Centred coordinates of the field stars that cluster `j` may be compared with, and the pairs allowed."""
        return self.evaluation.candidates_of(j)

    def field_coords(self) -> np.ndarray:
        """Coordinates of the field, (n_field, K)."""
        return np.asarray(self.evaluation.field, dtype=np.float64)

    def within(self, left_out: Sequence[int] = ()) -> np.ndarray:
        """Covariance within clusters (K, K), without the clusters `left_out`."""
        return self._measured(left_out)[0]

    def belonging(self, left_out: Sequence[int] = ()) -> np.ndarray:
        """How far each member (n_members,) counts as one (:mod:`chemscale.rsca.belonging`); 0 in `left_out`."""
        return self._measured(left_out)[1][: len(self.centred)]

    def _measured(self, left_out: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        out = tuple(sorted(set(left_out)))
        if out not in self._found:
            use = ~np.isin(self._number, out)
            number = np.unique(self._number[use], return_inverse=True)[1]
            prior = self.targets.get("residual", self.targets.get("noise"))
            belonging, weights = np.zeros(len(use)), self._weights[use]
            if self.judge is not None:
                belonging, prior = self.judge._measured(out)[1], None
                weights = weights * belonging[use]
            within, found = robust_scatter(self._stars[use], number, weights, self.covariance, prior, self.slack)
            if self.judge is None:
                belonging[use] = found
            self._found[out] = within, belonging
        return self._found[out]

    def metric(self, c: Candidate, left_out: Sequence[int] = ()) -> np.ndarray:
        """Map (k, n_features) fitted without the clusters `left_out`."""
        return self.full_metric(c.k, c.shrinkage, c.kind, c.ignore_continuum, left_out)[:, : c.n_features]

    def full_metric(
        self, k: int, shrinkage: float, kind: str, ignore_continuum: bool = False, left_out: Sequence[int] = ()
    ) -> np.ndarray:
        """Map (k, k), most scaled feature first."""
        within = self.within(left_out)[:k, :k]
        if shrinkage:
            within = (1 - shrinkage) * within + shrinkage * self.targets[kind][:k, :k]
        covariance = self.covariance[:k, :k]
        if ignore_continuum and self.continuum is not None:
            within = widened(within, covariance, self.continuum[:, :k], IGNORED)
        within = self._without_nuisances(within, covariance)
        matrix, sigma = shrunk_metric(within, covariance)
        if kind != "mad":
            return matrix
        use = ~np.isin(self.clusters, [self.names[j] for j in set(left_out)])
        axes = matrix / np.maximum(np.sqrt(np.maximum(1 - sigma**2, 0)) / sigma, 1e-12)
        with np.errstate(divide="ignore"):
            mad = np.maximum(pooled_sigma(self.centred[use][:, :k] @ axes, self.clusters[use]), 1e-6)
            mad[sigma >= 1] = 1.0  # ignored directions stay so
            scale = np.sqrt(np.maximum(1 - mad**2, 0)) / mad
        order = np.argsort(-scale, kind="stable")
        return (axes * scale)[:, order]

    def _without_nuisances(self, within: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """A covariance (k, k) wide along what metrics ignore."""
        if self.nuisances is None:
            return within
        directions = self.nuisances[:, : len(within)]
        if self.hold_leading:
            directions = beyond_leading(directions, within, covariance)
        return widened(within, covariance, directions, COVARIATE_EXTENT)


@dataclass
class SelfDetrended(Representation):
    """Coordinates detrended without labels of chemistry, by what the training clusters show to play their part.

    The axis along which siblings differ most, in units of the noise, stands for temperature and gravity (siblings share
    an isochrone), the two most telling features for metallicity and alpha; with these the coordinates are detrended
    as with labels (:class:`chemscale.rsca.detrending.SelfDetrending`). The field trains the dependence; which axes
    stand for what, clusters decide, so every set of training clusters has a view of its own.

    Attributes
    ----------
    removed : dict of str to (n_field,), (n_members,) and (n_siblings,) arrays
        Temperature and gravity, where the survey knows them: taken out in the place of the first axis.
    """

    removed: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)

    def with_field_of(self, evaluation: Evaluation) -> Self:
        n = evaluation.field.shape[0]
        removed = {k: (f[evenly(len(f), n)], *others) for k, (f, *others) in self.removed.items()}
        return replace(self, evaluation=evaluation, removed=removed)

    def view(self, left_out: Sequence[int]) -> _SelfDetrendedView:
        """Detrended without knowing the clusters `left_out`."""
        return _SelfDetrendedView(self, left_out)

    def axes(self, left_out: Sequence[int]) -> np.ndarray:
        """Functionals of the centred coordinates: nuisance, then two of chemistry; (K, 3)."""
        within, noise = self.within(left_out), self.targets["noise"]
        nuisance = eigh(within, noise)[1][:, -1:]
        shrunk = (1 - AXES_SHRINKAGE) * within + AXES_SHRINKAGE * noise
        if self.continuum is not None:
            shrunk = widened(shrunk, self.covariance, self.continuum, IGNORED)
        shrunk = self._without_nuisances(shrunk, self.covariance)
        return np.concatenate([nuisance, shrunk_metric(shrunk, self.covariance)[0][:, :2]], axis=1)


class _SelfDetrendedView(Representation):
    """:class:`SelfDetrended` for one set of training clusters."""

    def __init__(self, form: SelfDetrended, left_out: Sequence[int]):
        e = form.evaluation
        self.evaluation, self.targets, self.continuum, self.weights = e, form.targets, form.continuum, form.weights
        self.nuisances, self.hold_leading, self.slack = form.nuisances, form.hold_leading, form.slack
        self.groups, self.clusters, self.names = form.groups, form.clusters, form.names
        self._labels = {name: values[0] for name, values in form.removed.items()}
        detrending = SelfDetrending(e.moments.mean, form.axes(left_out), tuple(form.removed))
        self.detrending = detrending.fit(form.field_coords(), self._labels)
        moved = self.field_coords()
        self._mean = moved.mean(axis=0)
        of_members, of_siblings = ({name: v[i] for name, v in form.removed.items()} for i in (1, 2))
        siblings = form.siblings
        if siblings is not None:
            siblings = siblings.at(self.detrending.transform(siblings.coords, of_siblings))
        members = self.detrending.transform(e.members, of_members) - self._mean
        self._measure(members, np.cov(moved.T), siblings, self._mean)

    def rows(self, j: int) -> tuple[np.ndarray, np.ndarray | None]:
        rows, allowed = self.evaluation.candidates_of(j)
        labels = {name: values[self.evaluation.candidate_rows(j)] for name, values in self._labels.items()}
        return self.detrending.transform(rows + self.evaluation.moments.mean, labels) - self._mean, allowed

    def field_coords(self) -> np.ndarray:
        return self.detrending.transform(np.asarray(self.evaluation.field, dtype=np.float64), self._labels)
