"""Stages of an RSCA run: select, compress, embed, learn the metric; then rate it.

Products in the run directory: ``ppca.zarr``, ``embedding.zarr``, ``rsca.zarr`` (the paper's recipe); with
``metric="auto"`` also ``ppca_auto.zarr``, ``embedding_auto.zarr``, ``auto.zarr``, ``auto.json``; ``evaluation.json``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
import zarr

from chemscale.errors import DataError, InputError, ResumeError, StoreError
from chemscale.rsca.auto import SEARCH_FIELD, AutoMetric, AutoResult, Candidate, Representation, choose_metric
from chemscale.rsca.doppelganger import DoppelgangerRates, Evaluation
from chemscale.rsca.likeness import calibrate, pair_ratios
from chemscale.rsca.metric import RSCA, check_freedom
from chemscale.rsca.stars import Stars, text
from chemscale.rsca.transport import HELD, MOVED, LabelTransport
from chemscale.runtime.run import Run
from chemscale.schema import PAPER_ELEMENTS, PAPER_SUBSET

logger = logging.getLogger(__name__)

METRICS = ("paper", "auto")
#: A fit stops at this principal angle (radian) to the exact solution, or after this many passes. Where no gap follows
#: the last component its direction is hardly defined: the cap is reached, and fits from other starts (seeds) then
#: gave rates up to 0.006 apart on a survey of 4,000 stars. The manifest says which stop it was.
PPCA_ANGLE, PPCA_PASSES = 0.01, 30
#: Field stars that the better metric is learned and rated on, at most.
AUTO_FIELD = 200_000
#: Field stars of the abundance baselines and correlations, at most.
BASELINE_FIELD = 200_000


def fit_run(
    store: str,
    run_path: str | os.PathLike[str],
    *,
    components: int = 30,
    metric: str = "paper",
    overwrite: bool = False,
    selection: dict[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Run:
    """From a survey store to a metric: select stars, fit the basis, embed every star, learn the metric.

    Passes over the spectra: those of :func:`~chemscale.statistics.embedding.fit_survey` and one to embed; twice
    that with ``metric="auto"``, which has a basis of its own (per-pixel errors). Runs on the active Dask scheduler.

    Parameters
    ----------
    store : str
        Survey store, path or URL.
    run_path : path
        Run directory, made if need be. Products of an earlier fit there are replaced.
    components : int
        K, the components of the basis.
    metric : {"paper", "auto"}
        The paper's recipe alone, or the metric chosen by nested cross-validation beside it.
    overwrite : bool
        Start a run that is on another store anew.
    selection : dict, optional
        Changes to the survey's default cuts (:func:`chemscale.survey.selection.select_stars`).
    progress : callable, optional
        Told what is being done.

    Raises
    ------
    InputError, StoreError
        Unknown metric, bad `components`, no such store.
    DataError
        No clusters, no field stars, too few stars for K components.
    """
    from chemscale.survey.selection import select_stars
    from chemscale.survey.store import open_survey

    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}", f"choose one of: {', '.join(METRICS)}")
    if components < 1:
        raise InputError(f"components is {components}", "choose a positive number; 30 is the paper's")
    say = progress or logger.info
    ds = open_survey(store)
    run = Run.create(run_path, store=store, overwrite=overwrite)
    with run.stage("select", settings=selection or {}) as stage:
        chosen = select_stars(ds, None, **(selection or {}))
        stage.note(**chosen.report())
        if not chosen.members.any():
            raise DataError(
                f"{store}: no cluster with two members is left after the cuts",
                "a metric is learned from clusters: ingest with --members, or loosen the selection",
            )
        if not chosen.field.any():
            raise DataError(f"{store}: no field stars are left after the cuts", "loosen the selection")
        if chosen.field.sum() <= components:
            raise DataError(
                f"{int(chosen.field.sum())} field stars for {components} components",
                "use fewer components or a larger survey",
            )
        check_freedom(chosen.cluster[chosen.members], components)
    role = np.where(chosen.field, "field", np.where(chosen.members, "member", "unused"))
    say(f"{chosen.field.sum():,} field stars, {chosen.members.sum()} members of {len(chosen.clusters)} clusters")
    _basis(run, ds, chosen.keep, role, components, "shared", "", say)
    with run.stage("metric") as stage:
        stars = Stars.read(run)
        fitted = RSCA().fit(stars.field, stars.members, stars.clusters)
        metric_dataset(fitted).to_zarr(run.file("rsca.zarr"), mode="w", zarr_format=3, consolidated=False)
        stage.note(scale=fitted.scale_, informative=int(np.sum(fitted.scale_ > 0)))
    _forget(run, "evaluation.json", "auto.json")
    if metric == "auto":
        _basis(run, ds, chosen.keep, role, components, "per-pixel", "_auto", say)
        say("choosing the metric by nested cross-validation")
        with run.stage("auto") as stage:
            result, transports, note = fit_auto(run)
            save_auto(run, result, transports)
            stage.note(rate=result.rates.overall, committee=len(result.metric.committee), note=note)
    return run


def _forget(run: Run, *names: str) -> None:
    """Remove results of an earlier fit, which the new one makes wrong."""
    for name in names:
        if run.has(name):
            os.remove(run.file(name))


def _basis(
    run: Run,
    ds: xr.Dataset,
    keep: np.ndarray,
    role: np.ndarray,
    components: int,
    noise: str,
    suffix: str,
    say: Callable[[str], None],
) -> None:
    from chemscale.statistics.embedding import embed_survey, fit_survey

    say(f"fitting {components} components ({noise} noise)")
    with run.stage(f"ppca{suffix}", settings={"components": components, "noise": noise}) as stage:
        model = fit_survey(ds, keep, n_components=components, noise=noise, tol=PPCA_ANGLE, max_iter=PPCA_PASSES)
        model.to_dataset().to_zarr(run.file(f"ppca{suffix}.zarr"), mode="w", zarr_format=3, consolidated=False)
        stage.note(
            passes=model.n_passes_,
            stars=model.n_stars_,
            pixels=int(model.pixel_used_.sum()),
            angle=model.angle_[-1],
            converged=model.converged_ or f"stopped after {PPCA_PASSES} passes",
        )
    say("embedding every star")
    with run.stage(f"embed{suffix}") as stage:
        target, extra = run.file(f"embedding{suffix}.zarr"), {"role": role}
        try:
            embedding = embed_survey(ds, model, target, extra=extra, resume=True)
        except ResumeError:  # left by an earlier fit of this run
            embedding = embed_survey(ds, model, target, extra=extra, overwrite=True)
        stage.note(left_out=_leave_out_empty(target, embedding, role))
        stage.note(stars=int(embedding.sizes["star"]))


def _leave_out_empty(path: str, embedding: xr.Dataset, role: np.ndarray) -> dict[str, Any]:
    """Give selected stars without a single usable pixel the role "unused" in the embedding, and say which.

    So are the members of clusters that keep fewer than two members by that.
    """
    valid = np.asarray(embedding["valid"].values)
    lost = (role != "unused") & ~valid
    if not lost.any():
        return {}
    cluster = text(embedding["cluster"])
    names, counts = np.unique(cluster[(role == "member") & valid], return_counts=True)
    broken = (role == "member") & valid & np.isin(cluster, names[counts < 2])
    group = zarr.open_group(path, mode="r+")
    group["role"][:] = np.where(lost | broken, "unused", role).astype(object)  # type: ignore[index]
    ids = text(embedding["star_id"])
    message = f"{int(lost.sum())} selected star(s) have no usable pixel and take no part, e.g. {ids[lost][0]}"
    if broken.any():
        message += f"; so do {', '.join(np.unique(cluster[broken]))}, left with one member"
    logger.warning("%s", message)
    return {"no_usable_pixel": ids[lost][:100].tolist(), "cluster_left_with_one": np.unique(cluster[broken]).tolist()}


def metric_dataset(metric: RSCA) -> xr.Dataset:
    """A fitted metric as a Dataset (dims component, feature), for :func:`load_metric`."""
    ds = xr.Dataset(
        {
            "mean": ("component", metric.mean_, {"long_name": "mean of the field coordinates"}),
            "sphering": (("component", "axis"), metric.sphering_),
            "rotation": (("axis", "feature"), metric.rotation_),
            "sigma_clust": ("feature", metric.sigma_clust_, {"long_name": "scatter within clusters, field = 1"}),
            "scale": ("feature", metric.scale_, {"long_name": "1 / sigma_r"}),
        }
    )
    ds.attrs = {
        "model": "RSCA",
        "n_field": metric.n_field_,
        "n_members": metric.n_members_,
        "n_clusters": metric.n_clusters_,
    }
    return ds


def load_metric(run: Run) -> RSCA:
    """The paper's metric of a run."""
    ds = xr.open_zarr(run.need("rsca.zarr", "chemscale rsca fit STORE --run RUN"), consolidated=False)
    if ds.attrs.get("model") != "RSCA":
        raise StoreError(f"{run.file('rsca.zarr')} does not hold an RSCA metric", "fit the run again")
    out = RSCA()
    for name in ("mean", "sphering", "rotation", "sigma_clust", "scale"):
        setattr(out, f"{name}_", np.asarray(ds[name].values, dtype=np.float64))
    out.n_field_, out.n_members_, out.n_clusters_ = (int(ds.attrs[n]) for n in ("n_field", "n_members", "n_clusters"))
    return out


# ------------------------------------------------------------------ the better metric
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
    forms, transports, note = {"plain": z}, {}, ""
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
        transports[name], forms[name] = transport, transport.transform(z, labels)
    return forms, transports, note


def auto_representations(stars: Stars) -> tuple[dict[str, Representation], dict[str, LabelTransport], str]:
    """The forms of :func:`auto_forms` with what their within-cluster covariance may be shrunk towards."""
    coords, transports, note = auto_forms(stars)
    variance = np.asarray(stars.embedding["coords_variance"].data[stars.member_rows].compute(), dtype=np.float64)
    targets = {"noise": np.diag(variance.mean(axis=0))}
    if transports:  # the scatter at the fullest set of labels: least chemistry left in it
        targets["residual"] = list(transports.values())[-1].residual_
    n = len(stars.field_rows)
    forms = {name: Representation(stars.evaluate(z[:n], z[n:]), targets) for name, z in coords.items()}
    return forms, transports, note


def fit_auto(run: Run) -> tuple[AutoResult, dict[str, LabelTransport], str]:
    """Choose and rate the better metric on a run's per-pixel embedding; see :mod:`chemscale.rsca.auto`."""
    forms, transports, note = auto_representations(Stars.read(run, "embedding_auto.zarr", max_field=AUTO_FIELD))
    if note:
        logger.warning("%s", note)
    search = {name: Representation(f.evaluation.thinned(SEARCH_FIELD), f.targets) for name, f in forms.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # clusters without a pair: the evaluation names them
        return choose_metric(forms, search_forms=search), transports, note


def save_auto(run: Run, result: AutoResult, transports: dict[str, LabelTransport]) -> None:
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


def load_auto(run: Run) -> tuple[AutoMetric, dict[str, LabelTransport]]:
    """The better metric of a run and the transports its forms need."""
    ds = xr.open_zarr(
        run.need("auto.zarr", "chemscale rsca fit STORE --run RUN --metric auto"), consolidated=False
    ).load()
    mean = ds["mean"].values
    names = tuple(str(v) for v in ds.attrs["representations"])
    committee = [Candidate(**c) for c in run.load_json("auto.json")["committee"]] if run.has("auto.json") else []
    transports = {}
    for number in range(len(names)):
        state = ds.attrs.get(f"transport_{number}")
        if state is not None:
            prefix = f"transport_{number}_"
            arrays = {str(v)[len(prefix) :]: ds[v].values for v in ds.data_vars if str(v).startswith(prefix)}
            transports[str(state["name"])] = LabelTransport.from_dict({**state, **arrays})
    return AutoMetric(names, mean.shape[1], mean, ds["matrix"].values, committee), transports


# ------------------------------------------------------------------ evaluation
def evaluate_run(run_path: str | os.PathLike[str], *, n_features: int = 3) -> dict[str, Any]:
    """Doppelganger rates of a run, leave-one-cluster-out, written to ``evaluation.json``.

    Reads the embedding (some hundred bytes a star), never the spectra. A field too large for memory goes through in
    blocks, two passes a method.

    Parameters
    ----------
    run_path : path
    n_features : int
        Dimensions kept for `rsca_top`.

    Returns
    -------
    dict
        ``raw``, ``scaled``, ``rsca``, ``rsca_top`` (the most scaled `n_features`), ``auto`` where it was fitted;
        ``rsca_without_cross_validation``; ``per_cluster`` (cluster -> method -> rate, and n_members); counts;
        ``abundances`` baselines; ``correlations`` of the kept features with labels over the field; ``likeness``, the
        calibration of eq. (5); ``unrated_clusters``, which no field star can be compared with.

    Raises
    ------
    StoreError
        Not a run, or nothing fitted yet.
    DataError, InputError
        One cluster only, `n_features` beyond K.
    """
    run = Run.open(run_path)
    with run.stage("evaluate", settings={"n_features": n_features}) as stage:
        stars = Stars.read(run)
        engine = stars.evaluation
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # clusters without a pair are listed once, below
            rates: dict[str, DoppelgangerRates] = {
                "raw": engine.rates("raw"),
                "scaled": engine.rates("scaled"),
                "rsca": engine.rates("rsca"),
                "rsca_top": engine.rates("rsca", n_features=n_features),
            }
            overfitted = engine.rates("rsca", leave_one_out=False).overall
        unrated = [c for c, n in rates["raw"].n_pairs.items() if not n]
        if unrated:
            logger.warning("no field star passes the pair cuts for %s: left out of the averages", ", ".join(unrated))
        result: dict[str, Any] = {name: r.overall for name, r in rates.items()}
        result["rsca_without_cross_validation"] = overfitted
        per_cluster: dict[str, dict[str, Any]] = {
            c: {"n_members": rates["raw"].n_members[c], **{name: r.per_cluster[c] for name, r in rates.items()}}
            for c in engine.names
        }
        if run.has("auto.json"):
            auto = run.load_json("auto.json")
            result["auto"] = auto["rate"]
            for c, value in auto["per_cluster"].items():
                per_cluster[c]["auto"] = value
        result |= {
            "per_cluster": per_cluster,
            "n_field": len(stars.field_rows),
            "n_members": len(stars.member_rows),
            "n_clusters": len(engine.names),
            "n_components": stars.n_components,
            "n_features": n_features,
            "cuts": sorted({k.split("_", 1)[1] for k in stars.cuts}),
            "leave_one_cluster_out": True,
            "unrated_clusters": unrated,
            "likeness": likeness(engine, n_features),
            "abundances": abundance_baselines(run, stars),
            "correlations": kept_correlations(run, stars, n_features),
        }
        run.save_json("evaluation.json", result)
        stage.note(**{k: result[k] for k in ("raw", "scaled", "rsca", "rsca_top", "auto") if k in result})
    return run.load_json("evaluation.json")


def likeness(engine: Evaluation, n_features: int) -> dict[str, Any]:
    """Calibration of the probability ratio (eq. 5) on pairs of held-out clusters; {} where there are too few pairs."""
    n_pairs = sum(len(g) * (len(g) - 1) // 2 for g in engine.groups)
    if n_pairs < 50 or not isinstance(engine.field, np.ndarray):
        return {}
    result = calibrate(*pair_ratios(engine, n_features=n_features))
    return {**vars(result), "n_features": n_features}


def kept_correlations(run: Run, stars: Stars, n_features: int) -> dict[str, dict[str, list[float]]]:
    """Correlation over the field of each kept feature with velocity and extinction (should be small) and chemistry."""
    names = ("radial_velocity", "extinction", "fe_h", "alpha_m", "teff", "logg")
    step = max(1, len(stars.field_rows) // BASELINE_FIELD)
    picked = np.asarray(stars.field[::step])
    features = load_metric(run).transform(picked, n_features)
    out = {"rsca": stars.correlations(features, stars.field_rows[::step], names)}
    if run.has("auto.zarr"):
        other = Stars.read(run, "embedding_auto.zarr", max_field=AUTO_FIELD)
        metric, transports = load_auto(run)
        features = auto_features(metric, transports, np.asarray(other.field), other, other.field_rows, n_features)
        out["auto"] = other.correlations(features, other.field_rows, names)
    return out


def auto_features(
    metric: AutoMetric,
    transports: dict[str, LabelTransport],
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


def abundance_baselines(run: Run, stars: Stars) -> dict[str, dict[str, Any]]:
    """Rates of the survey's own abundances (section 4.5): all of the paper's species, and its subset of seven.

    A set is left out where its species are not defined for two members of at least two clusters. Stars without all of
    them take no part.
    """
    from chemscale.survey.store import open_survey

    survey = open_survey(run.store)
    if "abundance" not in survey.variables or "element" not in survey.variables:
        return {}
    if survey.sizes["star"] != stars.embedding.sizes["star"]:
        return {}
    elements = [str(e) for e in survey["element"].values]
    step = max(1, len(stars.field_rows) // BASELINE_FIELD)
    field_rows = stars.field_rows[::step]
    rows = np.concatenate([field_rows, stars.member_rows])
    values = np.asarray(survey["abundance"].values, dtype=np.float64)[rows]
    n = len(field_rows)
    known = np.isfinite(values[n:]).mean(axis=0) > 0.5
    sets = {
        "all": [e for e in PAPER_ELEMENTS if e in elements and known[elements.index(e)]],
        "subset": [e for e in PAPER_SUBSET if e in elements and known[elements.index(e)]],
    }
    out: dict[str, dict[str, Any]] = {}
    for name, species in sets.items():
        if len(species) < 2 or (name == "subset" and len(species) < len(PAPER_SUBSET)):
            continue
        x = values[:, [elements.index(e) for e in species]]
        if name == "subset":  # with respect to iron, iron itself to hydrogen
            iron = x[:, species.index("Fe")].copy()
            x = x - np.where(np.array(species) == "Fe", 0.0, iron[:, None])
        try:
            engine = _complete(stars, x, n, step)
            out[name] = {m: engine.rates(m).overall for m in ("raw", "scaled", "rsca")}
        except DataError as err:
            logger.info("abundance baseline %s left out: %s", name, err.message)
            continue
        out[name] |= {"species": species, "n_members": len(engine.members), "n_field": int(engine.field.shape[0])}
    return out


def _complete(stars: Stars, x: np.ndarray, n: int, step: int) -> Evaluation:
    """An evaluation of the stars for which all of `x` is finite."""
    good = np.isfinite(x).all(axis=1)
    names, counts = np.unique(stars.clusters[good[n:]], return_counts=True)
    members = good[n:] & np.isin(stars.clusters, names[counts >= 2])
    cuts = {k: v[::step][good[:n]] if k.startswith("field_") else v[members] for k, v in stars.cuts.items()}
    return Evaluation(x[:n][good[:n]], x[n:][members], stars.clusters[members], **cuts)
