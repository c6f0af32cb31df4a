"""Stages of an RSCA run: select, compress, embed, learn the metric; then rate it.

Products in the run directory: ``ppca.zarr``, ``embedding.zarr``, ``rsca.zarr`` (the paper's recipe); with
``metric="auto"`` also ``ppca_auto.zarr``, ``embedding_auto.zarr``, ``auto.zarr``, ``auto.json``; ``evaluation.json``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from chemscale.errors import DataError, InputError, StoreError
from chemscale.rsca.auto import check_clusters
from chemscale.rsca.auto_run import auto_components, doubtful_clusters, fit_auto, save_auto
from chemscale.rsca.basis_stages import fit_basis
from chemscale.rsca.companions import Companions
from chemscale.rsca.components import WIDE
from chemscale.rsca.metric import RSCA
from chemscale.rsca.moments import check_freedom
from chemscale.rsca.recipes import Recipe, chosen_recipe
from chemscale.rsca.stars import RunStars, text
from chemscale.runtime.run import Run

if TYPE_CHECKING:
    from chemscale.rsca.selection import StarSelection

logger = logging.getLogger(__name__)

METRICS = ("paper", "auto")


def fit_run(
    store: str,
    run_path: str | os.PathLike[str],
    *,
    components: int | Literal["auto"] = 30,
    metric: str = "paper",
    recipe: str | Recipe = "recommended",
    overwrite: bool = False,
    selection: dict[str, Any] | None = None,
    where: Mapping[str, tuple[float, float]] | None = None,
    default_cuts: bool = True,
    pairs: str | os.PathLike[str] | None = None,
    pair_weights: Mapping[str, float] | None = None,
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Run:
    """From a survey store to a metric: select stars, fit the basis, embed every star, learn the metric.

    Passes over the spectra: those of :func:`~chemscale.embedding.fit.fit_survey` and one to embed; twice
    that with ``metric="auto"``, which has a basis of its own (per-pixel errors). Runs on the active Dask scheduler.

    Parameters
    ----------
    store : str
        Survey store, path or URL.
    run_path : path
        Run directory, made if need be. Products of an earlier fit there are replaced; a basis that the same store,
        selection and settings gave is kept, with its embedding.
    components : int or "auto"
        K, the components of the basis. "auto": the leading ones of a basis of :data:`~chemscale.rsca.components.WIDE`
        with which held-out clusters have the lowest rate; one more pass, to embed with these. The better metric's own
        basis has up to :data:`~chemscale.rsca.auto_run.AUTO_COMPONENTS` where that is more.
    metric : {"paper", "auto"}
        The paper's recipe alone, or the metric chosen by nested cross-validation beside it.
    recipe : {"recommended", "paper"} or Recipe
        How the basis is fitted: per-pixel errors and outliers left out, or as in the paper.
    overwrite : bool
        Start a run that is on another store anew, and fit a basis again that is there.
    selection : dict, optional
        Changes to the survey's default cuts (:func:`chemscale.rsca.selection.select_stars`).
    where : mapping of str to (low, high), optional
        Ranges of labels for field stars and members alike, in the place of the default cuts on the same labels.
    default_cuts : bool
        Whether the survey's default cuts are made at all.
    pairs : path, optional
        Table of siblings that are no clusters, such as wide binaries or repeats, for ``metric="auto"``
        (:func:`chemscale.rsca.companions.read_pairs`).
    pair_weights : mapping of str to float, optional
        Weight of a kind of pairs in the place of :data:`chemscale.rsca.companions.KIND_WEIGHTS`.
    device : str, optional
        A GPU for the passes of fit and embedding, as in :class:`~chemscale.statistics.ppca.MaskedPPCA`.
    progress : callable, optional
        Told what is being done.

    Raises
    ------
    InputError, StoreError
        Unknown metric, bad `components`, no such store.
    DataError
        No clusters, no field stars, too few stars for K components.
    """
    from chemscale.rsca.selection import SelectionSettings, default_settings, select_stars
    from chemscale.survey.store.open import open_survey

    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}", f"choose one of: {', '.join(METRICS)}")
    recipe = chosen_recipe(recipe) if isinstance(recipe, str) else recipe
    choose_k = components == "auto"
    components = WIDE if components == "auto" else components
    if components < 1:
        raise InputError(f"components is {components}", "choose a positive number; 30 is the paper's")
    if pairs is not None and metric != "auto":
        raise InputError("the paper's recipe knows clusters alone", "add --metric auto, or leave out --pairs")
    if pair_weights and pairs is None:
        raise InputError("there are weights of pairs, but no pairs", "add --pairs TABLE")
    if device:
        from chemscale.statistics.ppca_device import room

        room(device)  # a device that is not there is said before anything is made
    say = progress or logger.info
    ds = open_survey(store)
    run = Run.create(run_path, store=store, overwrite=overwrite)
    given: dict[str, Any] = {"where": {k: list(v) for k, v in where.items()}} if where else {}
    given |= {} if default_cuts else {"default_cuts": False}
    given |= {} if pairs is None else {"pairs": str(pairs), "pair_weights": dict(pair_weights or {})}
    settings = default_settings(ds) if default_cuts else SelectionSettings()
    choose = partial(select_stars, ds, settings.within(where or {}), **(selection or {}))
    with run.locked():
        known = None if pairs is None else Companions(str(pairs), dict(pair_weights or {}))
        settled = {**(selection or {}), **given}
        _fit(run, ds, components, recipe, metric, overwrite, choose, known, settled, say, choose_k, device)
    return run


def _fit(
    run: Run,
    ds: xr.Dataset,
    components: int,
    recipe: Recipe,
    metric: str,
    overwrite: bool,
    choose: Callable[[], StarSelection],
    pairs: Companions | None,
    settings: dict[str, Any],
    say: Callable[[str], None],
    choose_k: bool,
    device: str | None,
) -> None:
    """The stages of :func:`fit_run`, by the only process that writes the run."""
    from chemscale.survey.store.root import store_token

    store = run.store
    with run.stage("select", settings=settings) as stage:
        chosen = choose()
        stage.note(**chosen.report(), cleaned=list(ds.attrs.get("cleaned", ())))
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
        columns: dict[str, np.ndarray] = {}
        if metric == "auto":
            check_clusters(len(chosen.clusters))
        if pairs is not None:
            columns, facts = pairs.columns(text(ds["star_id"]), chosen.field)
            stage.note(pairs=facts)
            say(f"{facts['stars']:>10,} stars of other groups of siblings are learned from")
    role = np.where(chosen.field, "field", np.where(chosen.members, "member", "unused"))
    if columns:
        role = np.where(columns["group"] != "", "sibling", role)
    columns = {"role": role, **columns}
    for line in chosen.account():
        say(line)
    token = "" if overwrite else store_token(store)
    n_pixels = fit_basis(run, ds, chosen.keep, columns, components, recipe, "", say, token, choose_k, device)
    with run.stage("metric") as stage:
        stars = RunStars.read(run)
        fitted = RSCA().fit(stars.field, stars.members, stars.clusters)
        run.save_dataset("rsca.zarr", fitted.to_dataset())
        stage.note(scale=fitted.scale_, informative=int(np.sum(fitted.scale_ > 0)))
    run.forget("auto.json", "auto.zarr")
    if metric == "auto":
        more = auto_components(components, int(chosen.field.sum()), n_pixels)
        own = replace(recipe, noise="per-pixel")
        same = own == recipe and more == components and not choose_k
        fit_basis(run, ds, chosen.keep, columns, more, own, "_auto", say, token, device=device, copy=same)
        say("choosing the metric by nested cross-validation")
        with run.stage("auto") as stage:
            result, detrendings, note = fit_auto(run)
            save_auto(run, result, detrendings)
            stage.note(rate=result.rates.overall, committee=len(result.metric.committee), note=note)
            stage.note(doubtful_members=len(result.doubtful))
        if result.doubtful:
            shown = ", ".join(f"{d['star_id']} ({d['cluster']})" for d in result.doubtful[:5])
            many = f"{len(result.doubtful)} of {len(result.belonging)} listed members"
            say(f"{many} look like field stars and hardly count, e.g. {shown}; auto.json has all")
        if told := doubtful_clusters(result):
            logger.warning("%s", told)
    run.forget_outdated("evaluation.json")


def load_metric(run: Run) -> RSCA:
    """The paper's metric of a run."""
    ds = run.open_dataset("rsca.zarr")
    try:
        return RSCA.from_dataset(ds)
    except InputError:
        raise StoreError(f"{run.file('rsca.zarr')} does not hold an RSCA metric", "fit the run again") from None
