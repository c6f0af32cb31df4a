"""Bases refitted with other seeds: how much a rate depends on the basis (error bars of Table 1).

Every restart follows the recipe of the run: its noise model, its outlier rejection, when it stops. It is fitted on
random stars, in memory; or, as in the paper, on the whole field from another start, as long as the run's own fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import dask
import numpy as np

from chemscale.embedding.fit import fit_survey
from chemscale.embedding.product import open_embedding
from chemscale.errors import DataError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.recipes import Recipe, recipe_of
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
        ``flux``, ``ivar`` and boolean ``missing`` (n, pixels) and ``is_field``, ``cluster``, ``extinction``,
        ``radial_velocity``.
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
    flux, ivar = (read_rows(survey[name], rows).astype(np.float32) for name in ("flux", "ivar"))
    missing = (read_rows(survey["flags"], rows) != 0) | ~(ivar > 0) | ~np.isfinite(flux)
    flux[missing] = 0
    out = {"flux": flux, "ivar": ivar, "missing": missing, "is_field": role[rows] == "field"}
    out["cluster"] = text(read_rows(embedding["cluster"], rows))
    for name in ("extinction", "radial_velocity"):
        if name in embedding:
            out[name] = read_rows(embedding[name], rows).astype(float)
    return out


@dataclass
class Restart:
    """One basis of its own: what rates metrics on it, and how its fit ended."""

    evaluation: Evaluation
    converged: bool
    verdict: str


def restarts(context: StudyContext, n: int, n_stars: int, k: int) -> list[Restart]:
    """`n` bases of `k` components, each fitted on a random share of `n_stars` field stars with its own seed.

    With `n_stars` 0 each is fitted on the whole field, in passes over the store; the seeds are those of its start.
    """
    key = f"restarts-{n}-{n_stars}-{k}"

    def make() -> list[Restart]:
        recipe = recipe_of(context.run)
        if not n_stars:
            return [_whole(context, k, recipe, seed) for seed in range(1, n + 1)]
        data = read_sample(context, n_stars)
        return [_one(data, k, recipe, seed) for seed in range(1, n + 1)]

    return context.shared(key, make)


def fitted_on(n_stars: int) -> str:
    """What restarts are fitted on, in words."""
    return "random stars" if n_stars else "the whole field"


def wide(context: StudyContext, k: int, n_stars: int) -> tuple[Evaluation, str]:
    """Stars on at least `k` components, and what to say of it: the run's own, or a basis refitted on some of its stars.

    Fewer than `k` where the clusters leave fewer degrees of freedom, one of them left out, or the spectra fewer pixels.
    """
    sample = context.sample
    if sample.n_components >= k:
        return sample.evaluation, ""
    sizes = np.unique(sample.clusters, return_counts=True)[1]
    most = int((sizes - 1).sum() - (sizes - 1).max())
    most = min(most, context.survey.sizes["wavelength"] // 2, min(n_stars, sample.n_field) // 3)
    short = f" The data allow {most} of {k} components." if most < k else ""
    wanted = min(k, most)
    if wanted <= sample.n_components:
        return sample.evaluation, short

    def make() -> Restart:
        return _one(read_sample(context, n_stars), wanted, recipe_of(context.run), 0, share=1.0)

    found = context.shared(f"wide-{wanted}-{n_stars}", make)
    return found.evaluation, (
        f" The run's basis has {sample.n_components} components: one of {wanted} was fitted to "
        f"{found.evaluation.moments.n:,} of its field stars by its recipe ({found.verdict}).{short}"
    )


def _one(data: dict[str, np.ndarray], k: int, recipe: Recipe, seed: int, share: float = _SHARE) -> Restart:
    rng = np.random.default_rng(seed)
    is_field = data["is_field"]
    use = ~is_field | (rng.random(len(is_field)) < share)
    ppca = MaskedPPCA(k, random_state=seed, **recipe.settings())
    ivar = data["ivar"] if ppca.uses_ivar else None
    ppca.fit(data["flux"][use], data["missing"][use], None if ivar is None else ivar[use])
    coords = np.asarray(ppca.transform(data["flux"], data["missing"], ivar))
    covariates = pair_covariates(data.get, is_field, ~is_field)
    evaluation = Evaluation(coords[is_field], coords[~is_field], data["cluster"][~is_field], covariates)
    return Restart(evaluation, ppca.converged_, ppca.verdict)


def _whole(context: StudyContext, k: int, recipe: Recipe, seed: int) -> Restart:
    """A basis of every field star and member, from the start that `seed` gives."""
    sample = context.sample
    if sample.n_field < sample.n_field_total:
        raise DataError(
            f"{sample.n_field_total:,} field stars are more than a study reads",
            "set restart_stars to a number of stars",
        )
    role = text(open_embedding(context.run.need("embedding.zarr", FIT_COMMAND))["role"].values)
    field, members = np.flatnonzero(role == "field"), np.flatnonzero(role == "member")
    use = np.isin(np.arange(len(role)), [*field, *members])
    ppca = fit_survey(context.survey, use, n_components=k, random_state=seed, **recipe.settings())
    coords = np.asarray(dask.compute(ppca.transform(context.survey[["flux", "ivar", "flags"]]))[0])
    evaluation = Evaluation(coords[field], coords[members], sample.clusters, sample.covariates)
    return Restart(evaluation, ppca.converged_, ppca.verdict)
