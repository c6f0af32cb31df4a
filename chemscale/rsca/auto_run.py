"""The better metric of a run: from its embedding to a committee, stored, loaded and applied (see :mod:`.auto`)."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from chemscale.errors import DataError, InputError
from chemscale.rsca.auto import SEARCH_FIELD, AutoMetric, AutoResult, choose_metric
from chemscale.rsca.belonging import DOUBTFUL, DOUBTFUL_CLUSTER, SLACK, SLACK_UNKNOWN
from chemscale.rsca.detrending import HELD, MIN_FRACTION, REMOVED, LabelDetrending, SelfDetrending
from chemscale.rsca.likeness import Likeness
from chemscale.rsca.outlying import FieldEdge
from chemscale.rsca.representation import (
    Candidate,
    Representation,
    SelfDetrended,
    continuum_directions,
    covariate_directions,
)
from chemscale.rsca.stars import CUTS, RunStars, text
from chemscale.runtime.run import Run

logger = logging.getLogger(__name__)

#: Field stars that the better metric is learned and rated on, at most.
AUTO_FIELD = 200_000
#: Components of its basis where stars and pixels allow: more than the paper's 30, as the search picks its K.
AUTO_COMPONENTS = 40

#: Field stars that self-detrending needs at least.
SELF_DETRENDING_FIELD = 500

Detrendings = dict[str, LabelDetrending | SelfDetrending]


def auto_components(components: int, n_field: int, n_pixels: int) -> int:
    """Components of the better metric's basis: at least `components`, however few the members (covariances shrink)."""
    return max(components, min(AUTO_COMPONENTS, n_field // 50, n_pixels // 20))


def auto_forms(stars: RunStars) -> tuple[dict[str, np.ndarray], dict[str, LabelDetrending], str]:
    """Coordinates of field stars, members and other siblings, in this order, in every form the labels allow.

    "plain"; "detrended" at the star's own [Fe/H] and [alpha/M]; "detrended-abundances" at its own abundances too,
    where the survey has them. Stars far outside the field are brought in (:mod:`chemscale.rsca.outlying`).

    Returns
    -------
    forms : dict of str to (n_field + n_members + n_siblings, K)
    detrendings : dict of str to LabelDetrending
        Of the detrended forms.
    note : str
        Why there is no detrended form; else ''.
    """
    others = [] if stars.siblings is None else [stars.siblings.coords]
    z = np.concatenate([np.asarray(stars.field), stars.members, *others])
    z = field_edge(stars).bring_in(z)
    rows = np.concatenate([stars.field_rows, stars.member_rows, stars.sibling_rows])
    detrendings, note = _by_labels(stars, z[: len(stars.field_rows)])
    forms = {"plain": z}
    for name, detrending in detrendings.items():
        labels = {k: v[rows] for k in detrending.names_ if (v := stars.label(k)) is not None}
        forms[name] = detrending.transform(z, labels)
    return forms, detrendings, note


def field_edge(stars: RunStars) -> FieldEdge:
    """Where the field ends. Nuisance is its scatter at fixed labels; without labels of chemistry, measurement noise."""
    detrendings, _ = _by_labels(stars, np.asarray(stars.field))
    nuisance = list(detrendings.values())[-1].residual_ if detrendings else stars.noise
    return FieldEdge.fit(stars.field, nuisance)


def _by_labels(stars: RunStars, field: np.ndarray) -> tuple[dict[str, LabelDetrending], str]:
    """Detrendings of field coordinates (n, K) that the labels allow, the fullest last; and why there is none, or ''."""
    detrendings: dict[str, LabelDetrending] = {}
    note = ""
    species = stars.elements()
    for name, linear in (("detrended", []), ("detrended-abundances", species)):
        if name != "detrended" and not species:
            continue
        known = (*REMOVED, *HELD, *linear)
        labels = {k: v[stars.field_rows] for k in known if (v := stars.label(k)) is not None}
        try:
            detrending = LabelDetrending(linear=linear).fit(field, labels)
        except DataError as err:
            note = note or f"{name}: {err.message}"
            continue
        if not detrending.held_ and not detrending.linear_:  # the trend with temperature holds chemistry too
            note = note or f"{name}: no label of chemistry is known"
            continue
        detrendings[name] = detrending
    return detrendings, note


def auto_representations(
    stars: RunStars, continuum: np.ndarray | None = None
) -> tuple[dict[str, Representation], dict[str, LabelDetrending], str]:
    """The forms of :func:`auto_forms`, and the plain one detrended by itself, ready for the search.

    Who belongs to a cluster is judged in the form of most labels, where most members have them: in every form alike.
    Forms detrended by themselves are there where chemistry is not known of most members: "self-detrended" needs no
    label at all, "self-detrended-labels" takes out the survey's temperature and gravity.

    Parameters
    ----------
    stars : RunStars
    continuum : (m, K), optional
        Directions that metrics may ignore (:func:`chemscale.rsca.representation.continuum_directions`).
    """
    coords, detrendings, note = auto_forms(stars)
    variance = stars.member_variance
    typical = variance.mean(axis=0)
    noise = np.mean(variance / typical, axis=1)  # of each member, 1 = typical
    targets = {"noise": np.diag(typical)}
    if detrendings:  # the scatter at the fullest set of labels: least chemistry left in it
        targets["residual"] = list(detrendings.values())[-1].residual_
    n = len(stars.field_rows)
    weights = 2 / (1 + noise)  # half of the scatter is the star's, half its noise, more or less
    leaking, held = (
        [v[stars.field_rows] for name in names if (v := stars.label(name)) is not None]
        for names in (tuple(CUTS), (*REMOVED, *HELD) if detrendings else ())
    )
    end = n + len(stars.member_rows)
    slack = SLACK if "detrended-abundances" in detrendings else SLACK_UNKNOWN
    forms = {
        name: Representation(
            stars.evaluate(z[:n], z[n:end]),
            targets,
            continuum,
            weights,
            covariate_directions(z[:n], leaking, held),
            None if stars.siblings is None else stars.siblings.at(z[end:]),
            hold_leading=not held,
            slack=slack,
        )
        for name, z in coords.items()
    }
    if labelled := [name for name, detrending in detrendings.items() if _labelled(stars, detrending)]:
        judge = forms[labelled[-1]]
        forms = {name: form if form is judge else replace(form, judge=judge) for name, form in forms.items()}
    if n >= SELF_DETRENDING_FIELD and not _labelled(stars, detrendings.get("detrended")):
        plain = forms["plain"]
        shared = (plain.evaluation, targets, continuum, plain.weights, plain.nuisances, plain.siblings, not held, slack)
        forms["self-detrended"] = SelfDetrended(*shared)
        known = {name: v for name in REMOVED if (v := stars.label(name)) is not None}
        removed = {
            name: (v[stars.field_rows], v[stars.member_rows], v[stars.sibling_rows])
            for name, v in known.items()
            if all(np.mean(np.isfinite(v[rows])) >= MIN_FRACTION for rows in (stars.field_rows, stars.member_rows))
        }
        if removed:
            forms["self-detrended-labels"] = SelfDetrended(*shared, removed=removed)
    return forms, detrendings, note


def _labelled(stars: RunStars, detrending: LabelDetrending | None) -> bool:
    """Whether a detrending knows chemistry, and most members have all of its labels."""
    if detrending is None or not detrending.held_:
        return False
    labels = [v[stars.member_rows] for n in detrending.names_ if (v := stars.label(n)) is not None]
    return bool(np.mean(np.all(np.isfinite(labels), axis=0)) > 0.5)


def run_continuum(run: Run) -> np.ndarray | None:
    """Directions of continuum errors in the coordinates of a run's per-pixel basis; None where there is none."""
    ds = run.open_dataset("ppca_auto.zarr")
    used = ds["pixel_used"].values.astype(bool)
    directions = continuum_directions(np.nan_to_num(ds["components"].values), np.nan_to_num(ds["mean"].values), used)
    return directions if len(directions) else None


def fit_auto(run: Run, stars: RunStars | None = None) -> tuple[AutoResult, Detrendings, str]:
    """Choose and rate the better metric on a run's per-pixel embedding; see :mod:`chemscale.rsca.auto`.

    Parameters
    ----------
    run : Run
    stars : RunStars, optional
        Stars of the run's ``embedding_auto.zarr``, such as without some labels; by default all that it knows.
    """
    stars = stars or RunStars.read(run, "embedding_auto.zarr", max_field=AUTO_FIELD)
    forms, by_labels, note = auto_representations(stars, run_continuum(run))
    detrendings: Detrendings = dict(by_labels)
    if note:
        logger.warning("%s", note)
    search = {name: form.with_field_of(form.evaluation.thinned(SEARCH_FIELD)) for name, form in forms.items()}
    with warnings.catch_warnings(), threadpool_limits(1, "blas"):  # many small matrices: threads would wait on another
        warnings.simplefilter("ignore", UserWarning)  # clusters without a pair: the evaluation names them
        result = choose_metric(forms, search_forms=search)
    result.metric.edge = field_edge(stars)
    result.doubtful = doubtful_members(stars, result.belonging)
    for name, form in forms.items():
        if isinstance(form, SelfDetrended):
            detrendings[name] = form.view(()).detrending
    return result, detrendings, note


def doubtful_members(stars: RunStars, belonging: np.ndarray) -> list[dict[str, Any]]:
    """Listed members that hardly count as members of their cluster, the most doubtful first."""
    order = [i for i in np.argsort(belonging, kind="stable") if belonging[i] < DOUBTFUL]
    ids = text(stars.embedding["star_id"][stars.member_rows[order]])
    return [
        {"star_id": str(star), "cluster": str(stars.clusters[i]), "belonging": round(float(belonging[i]), 3)}
        for star, i in zip(ids, order, strict=True)
    ]


def doubtful_clusters(result: AutoResult) -> str:
    """A warning of the clusters of whose listed members few belong, the most doubtful first; '' if there are none."""
    few = {c: (b, n) for c, (n, b) in result.belonging_of.items() if b < DOUBTFUL_CLUSTER * n}
    if not few:
        return ""
    order = sorted(few, key=lambda c: few[c][0] / few[c][1])
    shown = ", ".join(f"{c} ({few[c][0]:.1f} of {few[c][1]})" for c in order[:5])
    more = f" and {len(few) - 5} more, auto.json has all" if len(few) > 5 else ""
    return f"less than two thirds of the listed members look like siblings in {shown}{more}: check these lists"


def save_auto(run: Run, result: AutoResult, detrendings: Detrendings) -> None:
    """Write ``auto.zarr`` (the map, for use) and ``auto.json`` (rates, choices, doubtful members)."""
    m = result.metric
    m.detrendings = detrendings
    run.save_dataset("auto.zarr", m.to_dataset())
    run.save_json(
        "auto.json",
        {
            "rate": result.rates.overall,
            "doubtful_members": result.doubtful,
            "belonging": {c: {"members": n, "belong": round(b, 2)} for c, (n, b) in result.belonging_of.items()},
            "per_cluster": result.rates.per_cluster,
            "likeness": _likeness(result),
            "committee": [vars(c) for c in m.committee],
            "candidates": result.table[:200],
        },
    )


def _likeness(result: AutoResult) -> dict[str, Any]:
    try:
        return Likeness.fit(result.pairs, result.metric.matrix.shape[1]).to_json()
    except (DataError, InputError) as err:
        logger.warning("no likeness of pairs under the searched metric: %s", err.message)
        return {}


def load_auto(run: Run) -> tuple[AutoMetric, Detrendings]:
    """The better metric of a run and the detrendings its forms need."""
    ds = run.open_dataset("auto.zarr").load()
    committee = [Candidate(**c) for c in run.load_json("auto.json")["committee"]] if run.has("auto.json") else []
    metric = AutoMetric.from_dataset(ds, committee)
    return metric, metric.detrendings


def auto_features(
    metric: AutoMetric,
    detrendings: Detrendings,
    coords: np.ndarray,
    stars: RunStars,
    rows: np.ndarray,
    n_features: int | None = None,
) -> np.ndarray:
    """Features of stars under the better metric: (n, d), from their coordinates and their labels."""
    labels = {n: v[rows] for d in detrendings.values() for n in d.names_ if (v := stars.label(n)) is not None}
    applied = replace(metric, detrendings=detrendings)
    return applied.features(coords, labels, n_features)
