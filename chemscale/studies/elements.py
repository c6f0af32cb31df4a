"""Abundances as a representation of stars: which species, and with respect to what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chemscale.errors import DataError
from chemscale.schema import PAPER_ELEMENTS, PAPER_SUBSET
from chemscale.studies.sample import Sample


def species(sample: Sample, subset: bool = False, min_fraction: float = 0.9) -> list[str]:
    """Species a representation is built from: the paper's 21 (or its 7), else all the survey has.

    Parameters
    ----------
    sample : Sample
    subset : bool
        The paper's best seven (section 4.5).
    min_fraction : float
        A species undefined for more members than this leaves is not used.

    Raises
    ------
    DataError
        The run has no abundances, or the subset is not complete.
    """
    if sample.abundance is None:
        raise DataError("this survey has no abundances", "ingest one with an `abundance` variable ([X/H], dex)")
    members = sample.abundance[sample.n_field :]
    field = sample.abundance[: sample.n_field]
    have = [
        e
        for j, e in enumerate(sample.elements)
        if np.isfinite(members[:, j]).mean() >= min_fraction and np.isfinite(field[:, j]).mean() >= 0.5
    ]
    if subset:
        lacking = [e for e in PAPER_SUBSET if e not in have]
        if lacking:
            raise DataError(f"no abundances of {', '.join(lacking)}", "the 7-species subset needs them all")
        return list(PAPER_SUBSET)
    known = [e for e in PAPER_ELEMENTS if e in have]
    chosen = known or have
    if len(chosen) < 2:
        raise DataError("fewer than two species are defined for the cluster members", "check the survey's abundances")
    return chosen


def abundance_features(sample: Sample, chosen: Sequence[str], relative: bool | None = None) -> np.ndarray:
    """Abundances of `chosen` species, shape (n_stars, n_species); NaN where undefined.

    Parameters
    ----------
    chosen : sequence of str
    relative : bool, optional
        [X/Fe] with [Fe/H] as it is, as the paper's subset; [X/H] otherwise. By default relative where the choice has
        Fe and is not the full list of 21.
    """
    assert sample.abundance is not None
    columns = [sample.elements.index(e) for e in chosen]
    values = sample.abundance[:, columns].copy()
    if relative is None:
        relative = "Fe" in chosen and len(chosen) < len(PAPER_ELEMENTS)
    if relative and "Fe" in sample.elements:
        iron = sample.abundance[:, sample.elements.index("Fe")]
        for j, e in enumerate(chosen):
            if e != "Fe":
                values[:, j] -= iron
    return values
