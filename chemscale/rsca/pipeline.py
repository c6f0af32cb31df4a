"""Stages of an RSCA run: select, compress, embed, learn the metric; then rate it.

Products in the run directory: ``ppca.zarr``, ``embedding.zarr``, ``rsca.zarr`` (the paper's recipe); with
``metric="auto"`` also ``ppca_auto.zarr``, ``embedding_auto.zarr``, ``auto.zarr``, ``auto.json``; ``evaluation.json``.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
import zarr

from chemscale._version import __version__
from chemscale.errors import DataError, InputError, ResumeError, StoreError
from chemscale.rsca.auto import check_clusters
from chemscale.rsca.auto_run import auto_components, fit_auto, save_auto
from chemscale.rsca.companions import Companions
from chemscale.rsca.components import WIDE, choose_components
from chemscale.rsca.metric import RSCA
from chemscale.rsca.moments import check_freedom
from chemscale.rsca.recipes import Recipe, chosen_recipe
from chemscale.rsca.stars import RunStars, text
from chemscale.runtime.jsonio import digest
from chemscale.runtime.observe import Progress, human_seconds, progress_bar
from chemscale.runtime.run import Run

if TYPE_CHECKING:
    from chemscale.rsca.selection import StarSelection
    from chemscale.statistics.ppca import MaskedPPCA

logger = logging.getLogger(__name__)

METRICS = ("paper", "auto")
#: A fit expected to take longer than this from its second pass on (seconds) says so.
WORTH_SAYING = 20.0


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
    n_pixels = _basis(run, ds, chosen.keep, columns, components, recipe, "", say, token, choose_k, device)
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
        _basis(run, ds, chosen.keep, columns, more, own, "_auto", say, token, device=device, copy=same)
        say("choosing the metric by nested cross-validation")
        with run.stage("auto") as stage:
            result, detrendings, note = fit_auto(run)
            save_auto(run, result, detrendings)
            stage.note(rate=result.rates.overall, committee=len(result.metric.committee), note=note)
    run.forget_outdated("evaluation.json")


def _basis(
    run: Run,
    ds: xr.Dataset,
    keep: np.ndarray,
    columns: Mapping[str, np.ndarray],
    components: int,
    recipe: Recipe,
    suffix: str,
    say: Callable[[str], None],
    token: str,
    choose_k: bool = False,
    device: str | None = None,
    copy: bool = False,
) -> int:
    """Fit a basis and embed every star, unless that is done (`token`: what the store holds; '' = fit in any case).

    With `copy` the basis is the run's first one, which was fitted by the same recipe. With `choose_k`, keep the leading
    components that held-out clusters ask for, and embed again with these. Returns the number of pixels used.
    """
    from chemscale.embedding.fit import fit_survey

    chosen = hashlib.sha256("\0".join(str(v) for c in columns.values() for v in c.tolist()).encode()).hexdigest()
    settings: dict[str, Any] = {"components": components, **asdict(recipe)}
    settings |= {"choose": "leave-one-cluster-out"} if choose_k else {}
    inputs = {"store": token, "roles": chosen, "chemscale": __version__}
    key = digest(settings | inputs, compact=True)
    if token and (done := _done(run, suffix, key)):
        say(f"the basis of {components} components ({recipe.noise} noise) is there; --overwrite fits it again")
        return done
    if copy:
        from chemscale.statistics.ppca import MaskedPPCA

        say(f"the better metric has the same basis of {components} components")
        with run.stage(f"ppca{suffix}", settings=settings | {"key": key}) as stage:
            model = MaskedPPCA.from_dataset(run.open_dataset("ppca.zarr").load())
            run.save_dataset(f"ppca{suffix}.zarr", model.to_dataset())
            stage.note(**run.manifest["stages"]["ppca"]["facts"])
        _embed(run, ds, model, columns, suffix, key, device)
        return int(model.pixel_used_.sum())
    most = f"at most {recipe.max_passes} passes over {int(keep.sum()):,} spectra"
    outliers = "" if recipe.outlier_sigmas is None else f", outliers beyond {recipe.outlier_sigmas:g} sigma left out"
    say(f"fitting {components} components ({recipe.noise} noise{outliers}): {most}")
    with run.stage(f"ppca{suffix}", settings=settings | {"key": key}) as stage:
        with progress_bar(recipe.max_passes, "counting pixels, fitting a subsample", unit="passes") as bar:
            watch = _Passes(bar, recipe.tol, say)
            model = fit_survey(ds, keep, n_components=components, progress=watch, device=device, **recipe.settings())
        run.save_dataset(f"ppca{suffix}.zarr", model.to_dataset())
        stage.note(
            passes=model.n_passes_,
            stars=model.n_stars_,
            pixels=int(model.pixel_used_.sum()),
            angle=model.angle_[-1],
            converged=model.converged_,
            stopping_reason=model.stopping_reason_,
            determined=model.n_determined_,
            outliers=int(model.outlier_count_.sum()),
            stars_with_outliers=model.n_outlier_stars_,
            anomalous_stars=model.n_anomalous_,
            verdict=model.verdict,
        )
    say(model.verdict)
    if not model.converged_:
        logger.warning("the basis is %s", model.verdict)
    say("embedding every star")
    if choose_k:
        _embed(run, ds, model, columns, suffix, f"{key}-wide", device)
        with run.stage("components") as stage:
            choice = choose_components(RunStars.read(run).evaluation)
            stage.note(components=choice.components, tried=choice.tried, rates=choice.rates, verdict=choice.verdict)
        say(choice.verdict)
        if choice.components < components:
            model = model.leading(choice.components)
            run.save_dataset(f"ppca{suffix}.zarr", model.to_dataset())
            say(f"embedding every star with {choice.components} components")
    _embed(run, ds, model, columns, suffix, key, device)
    return int(model.pixel_used_.sum())


def _embed(
    run: Run,
    ds: xr.Dataset,
    model: MaskedPPCA,
    columns: Mapping[str, np.ndarray],
    suffix: str,
    key: str,
    device: str | None,
) -> None:
    """Coordinates of every star, unless those of this model are there; stars without a usable pixel take no part."""
    from chemscale.embedding.influence import resting_on_one_star, words
    from chemscale.embedding.product import embed_survey

    with run.stage(f"embed{suffix}", settings={"key": key}) as stage:
        target, extra = run.file(f"embedding{suffix}.zarr"), dict(columns)
        with progress_bar(ds.sizes["star"], "embedding", unit="stars") as bar:

            def show(done: int, total: int) -> None:
                bar.advance(done - bar.done)

            def revise(path: str, embedding: xr.Dataset) -> None:
                stage.note(left_out=_leave_out_empty(path, embedding, columns["role"]))

            bound = run.inputs(f"embedding{suffix}.zarr")
            given: dict[str, Any] = {"extra": extra, "revise": revise, "made_from": bound, "progress": show}
            given["device"] = device
            try:
                embedding = embed_survey(ds, model, target, resume=True, **given)
            except ResumeError:  # left by an earlier fit of this run
                embedding = embed_survey(ds, model, target, overwrite=True, **given)
        told = words(resting_on_one_star(embedding, np.asarray(columns["role"]) != "unused"))
        stage.note(stars=int(embedding.sizes["star"]), on_one_star=told)
    if told:
        logger.warning("%s: look at it with `chemscale plot spectra`", told)


def _done(run: Run, suffix: str, key: str) -> int:
    """Pixels of a basis that is there with its embedding, made from what `key` stands for; 0 if it is not."""
    stages = [run.manifest["stages"].get(f"{s}{suffix}", {}) for s in ("ppca", "embed")]
    same = all(s.get("status") == "done" and s.get("settings", {}).get("key") == key for s in stages)
    if not same or not all(run.has(f"{name}{suffix}.zarr") for name in ("ppca", "embedding")):
        return 0
    try:
        run.check(f"ppca{suffix}.zarr")
        run.check(f"embedding{suffix}.zarr")
    except StoreError:
        return 0
    return int(stages[0]["facts"]["pixels"])


class _Passes:
    """The passes of a fit on a progress bar, and once in words how long they will take."""

    def __init__(self, bar: Progress, tol: float, say: Callable[[str], None]):
        self.bar, self.tol, self.say = bar, tol, say
        self.angles: list[float] = []
        self.ended: list[float] = []

    def __call__(self, done: int, most: int, angle: float) -> None:
        self.angles.append(angle)
        self.ended.append(time.monotonic())
        left = passes_left(self.angles, self.tol, most)
        known = f"angle {angle:.2g} rad" if math.isfinite(angle) else "angle not known yet"
        self.bar.describe(f"fitting, {known}, stops at {self.tol:g}")
        self.bar.advance(done - self.bar.done)
        self.bar.expect(done + left)
        if done == 2:  # the first pass has more to do than the others
            each = self.ended[1] - self.ended[0]
            if each * left > WORTH_SAYING:
                about = f"about {human_seconds(each * left)} to go, " if left < most - done else ""
                self.say(f"a pass takes {human_seconds(each)}: {about}at most {human_seconds(each * (most - done))}")


def passes_left(angles: list[float], tol: float, most: int) -> int:
    """Passes until the angle is below `tol` if it falls on at its mean rate; what is left of `most` if unknown."""
    left = max(most - len(angles), 0)
    known = [(i, a) for i, a in enumerate(angles) if 0 < a < math.inf]
    if angles and angles[-1] < tol:
        return 0
    if len(known) < 2 or known[-1][1] >= known[0][1]:
        return left
    (i, first), (j, last) = known[0], known[-1]
    rate = math.log(first / last) / (j - i)
    return min(left, max(1, math.ceil(math.log(last / tol) / rate)))


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


def load_metric(run: Run) -> RSCA:
    """The paper's metric of a run."""
    ds = run.open_dataset("rsca.zarr")
    try:
        return RSCA.from_dataset(ds)
    except InputError:
        raise StoreError(f"{run.file('rsca.zarr')} does not hold an RSCA metric", "fit the run again") from None
