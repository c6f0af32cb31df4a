"""Bases refitted on random stars with other seeds: how much a rate depends on the basis (error bars of Table 1)."""

from __future__ import annotations

import numpy as np

from chemscale.embedding.product import open_embedding
from chemscale.errors import DataError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.stars import FIT_COMMAND, pair_covariates, read_rows, text
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.studies.registry import StudyContext

#: Groups of neighbouring stars the field sample is taken from: few chunks are decoded.
_GROUPS = 48
#: Share of the field sample each restart is fitted on.
_SHARE = 0.7


def read_sample(context: StudyContext, n_field: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Spectra of all members and of `n_field` field stars (each chunk that holds one is decoded once).

    Returns
    -------
    dict
        ``flux`` and boolean ``missing`` (n, pixels) and ``is_field``, ``cluster``, ``extinction``, ``radial_velocity``.
    """
    survey, embedding = context.survey, open_embedding(context.run.need("embedding.zarr", FIT_COMMAND))
    if survey.sizes["star"] != embedding.sizes["star"]:
        raise DataError("the embedding and the survey hold different stars", "fit the run again")
    role = text(embedding["role"].values)
    field, members = np.flatnonzero(role == "field"), np.flatnonzero(role == "member")
    if len(field) > n_field:
        rng = np.random.default_rng(seed)
        length = -(-n_field // _GROUPS)
        starts = np.sort(rng.choice(len(field) - length, _GROUPS, replace=False))
        field = field[np.unique(np.concatenate([np.arange(s, s + length) for s in starts]))]
    rows = np.sort(np.concatenate([field, members]))
    flux = read_rows(survey["flux"], rows)
    missing = (read_rows(survey["flags"], rows) != 0) | ~(read_rows(survey["ivar"], rows) > 0) | ~np.isfinite(flux)
    out = {"flux": np.where(missing, 0, flux).astype(np.float32), "missing": missing, "is_field": role[rows] == "field"}
    out["cluster"] = text(read_rows(embedding["cluster"], rows))
    for name in ("extinction", "radial_velocity"):
        if name in embedding:
            out[name] = read_rows(embedding[name], rows).astype(float)
    return out


def restarts(context: StudyContext, n: int, n_stars: int, k: int) -> list[Evaluation]:
    """Evaluations on `n` bases of `k` components, each fitted on a random share of the stars with its own seed."""
    key = f"restarts-{n}-{n_stars}-{k}"

    def make() -> list[Evaluation]:
        data = read_sample(context, n_stars)
        return [_one(data, k, seed) for seed in range(1, n + 1)]

    return context.shared(key, make)


def _one(data: dict[str, np.ndarray], k: int, seed: int) -> Evaluation:
    rng = np.random.default_rng(seed)
    is_field = data["is_field"]
    use = ~is_field | (rng.random(len(is_field)) < _SHARE)
    ppca = MaskedPPCA(k, tol=1e-2, loglike_tol=1e-6, max_iter=20, random_state=seed).fit(
        data["flux"][use], data["missing"][use]
    )
    coords = np.asarray(ppca.transform(data["flux"], data["missing"]))
    covariates = pair_covariates(data.get, is_field, ~is_field)
    return Evaluation(coords[is_field], coords[~is_field], data["cluster"][~is_field], covariates)
