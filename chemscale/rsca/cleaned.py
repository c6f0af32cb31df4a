"""What a cleaning of the spectra does to rates, told before anything is fitted anew.

A cleaning is linear in the flux, so on a run's basis it moves coordinates by the encoded effects: the run's stars are
rated as they are and moved, on the same clusters and pairs. The basis stays that of the spectra as they were; what a
new fit makes of cleaned spectra, `chemscale compare` of two runs tells.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.rsca.metric import RSCA
from chemscale.rsca.scales import encoder
from chemscale.rsca.stars import RunStars, cleaned_of
from chemscale.rsca.uncertainty import paired
from chemscale.runtime.run import Run
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.survey.store.cleaning import Effects


def cleaned_rates(
    run_path: str | os.PathLike[str], effects: Effects, *, n_features: int = 3, max_field: int = 200_000
) -> dict[str, Any]:
    """Rates of a run's stars before and after a cleaning, with paired errors, and what the features keep of it.

    Parameters
    ----------
    run_path : path
        A run of ``chemscale rsca fit`` on the spectra as they were ingested.
    effects : Effects
        From :func:`chemscale.quality.cleaning.find_effects`.
    n_features : int
        Kept features.
    max_field : int
        Field stars that are rated, at most.

    Returns
    -------
    dict
        ``before`` and ``after``: rates ``rsca`` and ``rsca_top``, and the largest correlation of a kept feature with
        each covariate. ``differences``: after less before with its standard error over clusters. ``warnings``: rates
        that got worse by more than that.

    Raises
    ------
    InputError
        The run was fitted on cleaned spectra.
    """
    run = Run.open(run_path)
    if cleaned := cleaned_of(run):
        raise InputError(
            f"{run.path} was fitted on spectra cleaned of {', '.join(cleaned)}",
            "take the cleaning off (`chemscale clean STORE --clear`) and fit a run, or leave --run out",
        )
    stars = RunStars.read(run, max_field=max_field)
    ppca = MaskedPPCA.from_dataset(run.open_dataset("ppca.zarr").load())
    move = np.asarray(effects.spectra, dtype=float) @ encoder(ppca).T
    nothing = np.full(stars.embedding.sizes["star"], np.nan)
    labels = {name: stars.label(name) for name in effects.covariates}
    terms = effects.terms({name: nothing if v is None else v for name, v in labels.items()})
    field, members = np.asarray(stars.field), stars.members
    moved = field - terms[stars.field_rows] @ move, members - terms[stars.member_rows] @ move
    out: dict[str, Any] = {}
    rates: dict[str, dict[str, Any]] = {"rsca": {}, "rsca_top": {}}
    for when, (f, m) in {"before": (field, members), "after": moved}.items():
        engine, kept = stars.evaluate(f, m), min(n_features, f.shape[1])
        rates["rsca"][when], rates["rsca_top"][when] = engine.rates("rsca"), engine.rates("rsca", n_features=kept)
        features = RSCA().fit(engine.moments, m, stars.clusters).transform(f, kept)
        follows = stars.correlations(features, stars.field_rows, effects.covariates)
        out[when] = {name: r[when].overall for name, r in rates.items()}
        out[when]["correlation"] = {name: max(map(abs, values)) for name, values in follows.items()}
    out["differences"], out["warnings"] = {}, []
    titles = {"rsca": "with every feature", "rsca_top": f"with the top {n_features}"}
    for name, r in rates.items():
        change, error = paired(r["after"].per_cluster, r["before"].per_cluster, r["before"].n_members)
        out["differences"][name] = [change, error]
        if change > error:
            out["warnings"].append(
                f"the rate {titles[name]} gets worse by {change:.4f} +- {error:.4f}: chemistry came off with the rest, "
                "or siblings were recognised by it"
            )
    return out
