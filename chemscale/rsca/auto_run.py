"""The better metric of a run: from its embedding to a committee, stored, loaded and applied (see :mod:`.auto`)."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import xarray as xr

from chemscale.errors import DataError
from chemscale.rsca.auto import SEARCH_FIELD, AutoMetric, AutoResult, choose_metric
from chemscale.rsca.representation import Candidate, Representation, Straightened, continuum_directions, leak_directions
from chemscale.rsca.stars import CUTS, Stars
from chemscale.rsca.transport import HELD, MIN_FRACTION, MOVED, LabelTransport, SelfTransport, stored_transport
from chemscale.runtime.run import Run

logger = logging.getLogger(__name__)

#: Field stars that the better metric is learned and rated on, at most.
AUTO_FIELD = 200_000
#: Components of its basis where stars, pixels and clusters allow: more than the paper's 30, as the search picks its K.
AUTO_COMPONENTS = 40

#: Field stars that straightening needs at least.
STRAIGHT_FIELD = 500

Transports = dict[str, LabelTransport | SelfTransport]


def auto_components(components: int, n_field: int, n_pixels: int, freedom: int) -> int:
    """Components of the better metric's basis: at least `components`."""
    return max(components, min(AUTO_COMPONENTS, n_field // 50, n_pixels // 20, freedom // 2))


def auto_forms(stars: Stars) -> tuple[dict[str, np.ndarray], dict[str, LabelTransport], str]:
    """Coordinates of field stars then members in every form the labels allow.

    "plain"; "transported" at the star's own [Fe/H] and [alpha/M]; "transported-abundances" at its own abundances too,
    where the survey has them.

    Returns
    -------
    forms : dict of str to (n_field + n_members, K)
    transports : dict of str to LabelTransport
        Of the transported forms.
    note : str
        Why there is no transported form; else ''.
    """
    z = np.concatenate([np.asarray(stars.field), stars.members])
    rows = np.concatenate([stars.field_rows, stars.member_rows])
    n = len(stars.field_rows)
    forms: dict[str, np.ndarray] = {"plain": z}
    transports: dict[str, LabelTransport] = {}
    note = ""
    species = stars.elements()
    for name, linear in (("transported", []), ("transported-abundances", species)):
        if name != "transported" and not species:
            continue
        labels = {k: v[rows] for k in (*MOVED, *HELD, *linear) if (v := stars.label(k)) is not None}
        try:
            transport = LabelTransport(linear=linear).fit(z[:n], {k: v[:n] for k, v in labels.items()})
        except DataError as err:
            note = note or f"{name}: {err.message}"
            continue
        if not transport.held_ and not transport.linear_:  # the trend with temperature holds chemistry too
            note = note or f"{name}: no label of chemistry is known"
            continue
        transports[name], forms[name] = transport, transport.transform(z, labels)
    return forms, transports, note


def auto_representations(
    stars: Stars, continuum: np.ndarray | None = None
) -> tuple[dict[str, Representation], dict[str, LabelTransport], str]:
    """The forms of :func:`auto_forms`, and the plain one straightened by itself, ready for the search.

    Straightened forms are there where chemistry is not known of most members: "straightened" needs no label at all,
    "straightened-labels" takes out the survey's temperature and gravity.

    Parameters
    ----------
    stars : Stars
    continuum : (m, K), optional
        Directions that metrics may ignore (:func:`chemscale.rsca.representation.continuum_directions`).
    """
    coords, transports, note = auto_forms(stars)
    variance = np.asarray(stars.embedding["coords_variance"].data[stars.member_rows].compute(), dtype=np.float64)
    typical = variance.mean(axis=0)
    noise = np.mean(variance / typical, axis=1)  # of each member, 1 = typical
    targets = {"noise": np.diag(typical)}
    if transports:  # the scatter at the fullest set of labels: least chemistry left in it
        targets["residual"] = list(transports.values())[-1].residual_
    n = len(stars.field_rows)
    weights = 2 / (1 + noise)  # half of the scatter is the star's, half its noise, more or less
    leaking, held = (
        [v[stars.field_rows] for name in names if (v := stars.label(name)) is not None]
        for names in (tuple(CUTS), (*MOVED, *HELD) if transports else ())
    )
    forms = {
        name: Representation(
            stars.evaluate(z[:n], z[n:]), targets, continuum, weights, leak_directions(z[:n], leaking, held)
        )
        for name, z in coords.items()
    }
    if n >= STRAIGHT_FIELD and not _labelled(stars, transports.get("transported")):
        shared = (forms["plain"].evaluation, targets, continuum, weights, forms["plain"].leaks)
        forms["straightened"] = Straightened(*shared)
        known = {name: v for name in MOVED if (v := stars.label(name)) is not None}
        moved = {name: (v[stars.field_rows], v[stars.member_rows]) for name, v in known.items()}
        moved = {k: both for k, both in moved.items() if all(np.mean(np.isfinite(v)) >= MIN_FRACTION for v in both)}
        if moved:
            forms["straightened-labels"] = Straightened(*shared, moved=moved)
    return forms, transports, note


def _labelled(stars: Stars, transport: LabelTransport | None) -> bool:
    """Whether a transport knows chemistry, and most members have all of its labels."""
    if transport is None or not transport.held_:
        return False
    labels = [v[stars.member_rows] for n in transport.names_ if (v := stars.label(n)) is not None]
    return bool(np.mean(np.all(np.isfinite(labels), axis=0)) > 0.5)


def run_continuum(run: Run) -> np.ndarray | None:
    """Directions of continuum errors in the coordinates of a run's per-pixel basis; None where there is none."""
    ds = xr.open_zarr(
        run.need("ppca_auto.zarr", "chemscale rsca fit STORE --run RUN --metric auto"), consolidated=False
    )
    used = ds["pixel_used"].values.astype(bool)
    directions = continuum_directions(np.nan_to_num(ds["components"].values), np.nan_to_num(ds["mean"].values), used)
    return directions if len(directions) else None


def fit_auto(run: Run, stars: Stars | None = None) -> tuple[AutoResult, Transports, str]:
    """Choose and rate the better metric on a run's per-pixel embedding; see :mod:`chemscale.rsca.auto`.

    Parameters
    ----------
    run : Run
    stars : Stars, optional
        Stars of the run's ``embedding_auto.zarr``, such as without some labels; by default all that it knows.
    """
    stars = stars or Stars.read(run, "embedding_auto.zarr", max_field=AUTO_FIELD)
    forms, by_labels, note = auto_representations(stars, run_continuum(run))
    transports: Transports = dict(by_labels)
    if note:
        logger.warning("%s", note)
    search = {name: form.with_field_of(form.evaluation.thinned(SEARCH_FIELD)) for name, form in forms.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # clusters without a pair: the evaluation names them
        result = choose_metric(forms, search_forms=search)
    for name, form in forms.items():
        if isinstance(form, Straightened):
            transports[name] = form.view(()).transport
    return result, transports, note


def save_auto(run: Run, result: AutoResult, transports: Transports) -> None:
    """Write ``auto.zarr`` (the map, for use) and ``auto.json`` (rates and choices)."""
    m = result.metric
    ds = xr.Dataset(
        {
            "mean": (("representation", "component"), m.mean),
            "matrix": (("stacked", "feature"), m.matrix),
        },
    )
    ds.attrs = {"model": "committee", "representations": list(m.names), "committee": [c.label() for c in m.committee]}
    for number, (name, transport) in enumerate(transports.items()):
        state = transport.to_dict()
        arrays = {k: v for k, v in state.items() if isinstance(v, np.ndarray)}
        ds.attrs[f"transport_{number}"] = {"name": name, **{k: v for k, v in state.items() if k not in arrays}}
        for k, v in arrays.items():
            ds[f"transport_{number}_{k}"] = (tuple(f"{number}_{k}_{i}" for i in range(v.ndim)), v)
    ds.to_zarr(run.file("auto.zarr"), mode="w", zarr_format=3, consolidated=False)
    run.save_json(
        "auto.json",
        {
            "rate": result.rates.overall,
            "per_cluster": result.rates.per_cluster,
            "committee": [vars(c) for c in m.committee],
            "candidates": result.table[:200],
        },
    )


def load_auto(run: Run) -> tuple[AutoMetric, Transports]:
    """The better metric of a run and the transports its forms need."""
    ds = xr.open_zarr(
        run.need("auto.zarr", "chemscale rsca fit STORE --run RUN --metric auto"), consolidated=False
    ).load()
    mean = ds["mean"].values
    names = tuple(str(v) for v in ds.attrs["representations"])
    committee = [Candidate(**c) for c in run.load_json("auto.json")["committee"]] if run.has("auto.json") else []
    transports: Transports = {}
    for number in range(len(names)):
        state = ds.attrs.get(f"transport_{number}")
        if state is not None:
            prefix = f"transport_{number}_"
            arrays = {str(v)[len(prefix) :]: ds[v].values for v in ds.data_vars if str(v).startswith(prefix)}
            transports[str(state["name"])] = stored_transport({**state, **arrays})
    return AutoMetric(names, mean.shape[1], mean, ds["matrix"].values, committee), transports


def auto_features(
    metric: AutoMetric,
    transports: Transports,
    coords: np.ndarray,
    stars: Stars,
    rows: np.ndarray,
    n_features: int | None = None,
) -> np.ndarray:
    """Features of stars under the better metric: (n, d), from their coordinates and their labels."""
    forms = {"plain": coords}
    nothing = np.full(len(rows), np.nan)
    for name, transport in transports.items():
        labels = {n: nothing if (v := stars.label(n)) is None else v[rows] for n in transport.names_}
        forms[name] = transport.transform(coords, labels)
    return metric.transform(forms, n_features)
