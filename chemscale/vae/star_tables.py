"""Anomalies and flags of any number of stars: learned from a sample, then judged block by block.

Both go twice over ``latents.zarr``, on the workers where there are any. The first pass gathers what a population is
known by: held-out stars for the scale of the scores, a sample for calibrations, trees and thresholds. The second
judges every star and writes the product, a chunk a block. Whether a star belongs to a sample is decided by its
identifier, and all that is summed over blocks are counts: any blocks, in any order, give the same numbers. Memory is
that of the sample (at most :data:`SAMPLE_STARS`, of latents and not of spectra) and of one block for each thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.runtime.shards import map_shards, per_worker
from chemscale.vae import anomalies as anomaly
from chemscale.vae.columns import BLOCK_STARS, begin_columns, write_rows
from chemscale.vae.data import draws, held_out
from chemscale.vae.evaluate import LABELS, label_columns, label_of
from chemscale.vae.flag_model import FlagModel, FlagTally, Posteriors, fit_flags
from chemscale.vae.flags import PRESETS

if TYPE_CHECKING:
    from distributed import Client

#: Stars that a population is known by, at most (about: each is chosen by a hash of its identifier).
SAMPLE_STARS = 250_000
#: Variables of a survey that abundances are taken from.
ABUNDANCES = tuple(dict.fromkeys([variable for variable, _ in LABELS.values()] + ["abundance"]))
Rows = tuple[int, int]


@dataclass(frozen=True)
class Latents:
    """Finished latents of a run, to be read block by block.

    Attributes
    ----------
    path : str
        ``latents.zarr``.
    stars : int
    fraction, seed
        What decides which stars were held out, see :func:`~chemscale.vae.data.held_out`.
    """

    path: str
    stars: int
    fraction: float
    seed: int

    def blocks(self) -> dict[int, Rows]:
        """First row -> rows of each block."""
        return {a: (a, min(a + BLOCK_STARS, self.stars)) for a in range(0, self.stars, BLOCK_STARS)}

    def read(self, rows: Rows, *names: str) -> xr.Dataset:
        """Variables of some stars, in memory."""
        with xr.open_zarr(self.path, consolidated=False, chunks=None) as ds:
            return ds[[*names, "star_id"]].isel(star=slice(*rows)).load()

    def held_out(self, star_id: np.ndarray) -> np.ndarray:
        """Which of these stars were kept away from training; (n,) bool."""
        return held_out(star_id, self.fraction, self.seed)


def _each(
    func: Callable[..., Any],
    latents: Latents,
    client: Client | None,
    shared: Any,
    on_result: Callable[[int, Any], None],
    what: str,
) -> None:
    map_shards(
        func,
        latents.blocks(),
        client,
        shared=shared,
        on_result=on_result,
        description=what,
        unit="stars",
        weight=lambda start: min(BLOCK_STARS, latents.stars - start),
    ).raise_for_failures("block of stars")


# ------------------------------------------------------------------ anomalies


@dataclass(frozen=True)
class _Scoring:
    """What judging a block for anomalies needs."""

    latents: Latents
    calibration: anomaly.ScoreCalibration
    folder: str
    top: int
    windows: np.ndarray | None


def find_anomalies(
    latents: Latents,
    product: Path,
    *,
    false_alarm: float = 0.01,
    top: int = 1000,
    windows: np.ndarray | None = None,
    client: Client | None = None,
    made_from: Mapping[str, str | None] | None = None,
) -> tuple[anomaly.ScoreCalibration, anomaly.AnomalyTally]:
    """Score every star into `product`; two passes over the latents.

    Parameters
    ----------
    windows : ndarray, optional
        Central wavelengths of the windows of the local score, for the ranked table.

    Returns
    -------
    calibration, tally
    """
    parts: dict[int, dict[str, np.ndarray]] = {}
    expected = max(1.0, latents.stars * latents.fraction)
    shared = latents, min(1.0, SAMPLE_STARS / expected)
    _each(_reference_scores, latents, client, shared, parts.__setitem__, "held-out stars")
    joined = [parts[a] for a in sorted(parts)]
    calibration = anomaly.calibrate_scores({k: np.concatenate([p[k] for p in joined]) for k in joined[0]}, false_alarm)
    first = latents.read((0, min(1, latents.stars)), *_SCORED)
    like = {"star_id": np.asarray(first["star_id"].values)} | anomaly.score(first, calibration)
    new = begin_columns(product, latents.stars, like, "vae anomalies")
    tally = anomaly.AnomalyTally(top)
    scoring = _Scoring(latents, calibration, str(new.folder), top, windows)
    _each(_score_block, latents, client, scoring, lambda start, found: tally.add(found, start), "anomalies")
    new.finish(made_from or {})
    return calibration, tally


_SCORED = ("chi2", "local", "norm", "quiet", "relative_l2", "local_window")


def _reference_scores(rows: Rows, shared: tuple[Latents, float]) -> dict[str, np.ndarray]:
    """Scores of the held-out stars of a block."""
    latents, fraction = shared
    ds = latents.read(rows, "chi2", "local", "norm", "quiet")
    ids = np.asarray(ds["star_id"].values)
    chosen = latents.held_out(ids)
    if fraction < 1:
        chosen &= _drawn(ids, fraction)
    return anomaly.raw_scores(ds.isel(star=np.flatnonzero(chosen)))


def _score_block(rows: Rows, shared: _Scoring) -> dict[str, Any]:
    ds = shared.latents.read(rows, *_SCORED)
    ids = np.asarray(ds["star_id"].values)
    table = anomaly.score(ds, shared.calibration)
    write_rows(shared.folder, rows[0], {"star_id": ids} | table)
    return anomaly.AnomalyTally.of(
        table, anomaly.ranked(ds, table, shared.top, shared.windows), shared.latents.held_out(ids)
    )


def _drawn(star_id: np.ndarray, fraction: float) -> np.ndarray:
    """Stars of a sample of that fraction; (n,) bool."""
    return draws(star_id, "sample") < int(fraction * 2**32)


# ---------------------------------------------------------------------- flags


@dataclass(frozen=True)
class _Sampling:
    """What gathering the sample needs: labels by star, or the survey that has them."""

    latents: Latents
    fraction: float
    labels: Mapping[str, Mapping[str, float]]
    survey: str | None


@dataclass
class _Sample:
    """Sampled stars of a block: posteriors, which were drawn and which held out, their labels."""

    stars: Posteriors
    drawn: np.ndarray
    held_out: np.ndarray
    labels: list[Mapping[str, float] | None]
    found: list[str]
    survey: xr.Dataset | None


def find_flags(
    latents: Latents,
    product: Path,
    names: tuple[str, ...],
    signs: Mapping[str, int],
    *,
    rules: Mapping[str, Any] | None = None,
    labels: Mapping[str, Mapping[str, float]] | None = None,
    survey: str | None = None,
    purity: float | None = None,
    plain: bool = False,
    client: Client | None = None,
    made_from: Mapping[str, str | None] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Flag every star into `product`; two passes over the latents, one over the abundances of `survey`.

    Parameters
    ----------
    names : tuple of str
        Of the latents.
    labels : mapping, optional
        star_id -> {latent: abundance}.
    survey : str, optional
        Store whose own abundances calibrate, where there are no `labels`.
    rules, signs, purity, plain
        See :func:`chemscale.vae.flags.apply`.

    Returns
    -------
    summary : dict
        As in ``flags.json``.
    calibrated : bool
        Whether any abundance was known.
    """
    parts: dict[int, _Sample] = {}
    fraction = min(1.0, SAMPLE_STARS / max(1, latents.stars))
    sampling = _Sampling(latents, fraction, dict(labels or {}), survey)
    _each(_sample_block, latents, client, sampling, parts.__setitem__, "sample for flags")
    samples = [parts[a] for a in sorted(parts)]
    del parts
    stars = Posteriors.joined([s.stars for s in samples])
    given = _given_abundances(samples, sampling.labels) if labels else _survey_abundances(samples, names)
    drawn = np.concatenate([s.drawn for s in samples])
    del samples
    model = fit_flags(
        stars,
        names,
        {**PRESETS, **dict(rules or {})},
        given,
        signs,
        optional=tuple(PRESETS),
        population=drawn,
        purity=purity,
        plain=plain,
    )
    first = latents.read((0, min(1, latents.stars)), *_POSTERIOR)
    like = {"star_id": np.asarray(first["star_id"].values)} | model.judge(Posteriors.of(first)).columns()
    new = begin_columns(product, latents.stars, like, "vae flags")
    tally = FlagTally(model)
    shared = latents, model, str(new.folder)
    _each(_flag_block, latents, client, shared, lambda _, found: tally.add(found), "flags")
    new.finish(made_from or {})
    return tally.summary(), bool(given)


_POSTERIOR = ("mean", "auxiliary", "covariance")


def _sample_block(rows: Rows, shared: _Sampling) -> _Sample:
    ds = shared.latents.read(rows, *_POSTERIOR)
    ids = np.asarray(ds["star_id"].values)
    labelled = np.array([i in shared.labels for i in ids], dtype=bool)
    found = [str(i) for i in ids[labelled]]
    drawn = _drawn(ids, shared.fraction) if shared.fraction < 1 else np.ones(len(ids), dtype=bool)
    if len(shared.labels) > SAMPLE_STARS:
        labelled &= _drawn(ids, SAMPLE_STARS / len(shared.labels))
    chosen = np.flatnonzero(drawn | labelled)
    survey = None
    if shared.survey is not None:
        from chemscale.survey.store.open import open_survey

        path = shared.survey
        whole = per_worker(("chemscale.vae.survey", path), lambda: open_survey(path))
        known = whole[[n for n in ABUNDANCES if n in whole.variables]].isel(star=slice(*rows))
        with dask.config.set(scheduler="synchronous"):  # a worker must not send this back to the scheduler
            survey = known.load().isel(star=chosen)
    own = ids[chosen]
    return _Sample(
        Posteriors.of(ds.isel(star=chosen), rows[0] + chosen),
        drawn[chosen],
        shared.latents.held_out(own),
        [shared.labels.get(str(i)) for i in own] if shared.labels else [],
        found,
        survey,
    )


def _given_abundances(samples: list[_Sample], labels: Mapping[str, Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Labels given by star, as arrays in the order of the sample: latent -> (n,), NaN where unknown."""
    absent = set(labels).difference(*(s.found for s in samples))
    if absent:
        shown = [star for star in labels if star in absent][:5]
        raise InputError(f"labelled stars not in the latents: {', '.join(shown)}", "check the identifiers")
    rows = [row or {} for s in samples for row in s.labels]
    latents = dict.fromkeys(k for row in labels.values() for k in row)
    return {k: np.array([row.get(k, np.nan) for row in rows], dtype=np.float64) for k in latents}


def _survey_abundances(samples: list[_Sample], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Abundances of the survey's own stars by latent, those held out left out; empty where it has none."""
    tables = [s.survey for s in samples if s.survey is not None]
    if not tables:
        return {}
    known = label_columns(xr.concat(tables, "star", data_vars="minimal", coords="minimal"), names)
    out = np.concatenate([s.held_out for s in samples])
    found = {n: np.where(out, np.nan, known[label_of(n)]) for n in names if label_of(n) in known}
    return {n: values for n, values in found.items() if np.isfinite(values).sum() >= 2}


def _flag_block(rows: Rows, shared: tuple[Latents, FlagModel, str]) -> dict[str, Any]:
    latents, model, folder = shared
    ds = latents.read(rows, *_POSTERIOR)
    ids = np.asarray(ds["star_id"].values)
    stars = Posteriors.of(ds, rows[0])
    flags = model.judge(stars)
    write_rows(folder, rows[0], {"star_id": ids} | flags.columns())
    return FlagTally.of(flags, stars.rows, ids)
