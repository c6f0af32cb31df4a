"""The basis of a run: its components fitted and every star embedded, unless that is there already."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr

from chemscale._version import __version__
from chemscale.errors import ResumeError, StoreError
from chemscale.rsca.components import choose_components
from chemscale.rsca.recipes import Recipe
from chemscale.rsca.stars import RunStars, text
from chemscale.runtime.jsonio import digest
from chemscale.runtime.observe import Progress, human_seconds, progress_bar
from chemscale.runtime.run import Run

if TYPE_CHECKING:
    from chemscale.statistics.ppca import MaskedPPCA

logger = logging.getLogger(__name__)

#: A fit expected to take longer than this from its second pass on (seconds) says so.
WORTH_SAYING = 20.0


def fit_basis(
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
    better = " for the better metric" if suffix else ""
    say(f"fitting {components} components{better} ({recipe.noise} noise{outliers}): {most}")
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
        self.bar.expect(done + left, at_most=left == most - done)
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
