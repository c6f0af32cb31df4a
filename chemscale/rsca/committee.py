"""The metric of a committee of candidates: one linear map of stacked representations, refined by contrast or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chemscale.rsca.contrastive import refine
from chemscale.rsca.representation import Candidate, Representation


def committee_map(
    views: Mapping[str, Representation], committee: Sequence[Candidate], left_out: Sequence[int], k_max: int
) -> np.ndarray:
    """Stacked map (n_forms * k_max, d) whose Euclidean distance is the committee's root mean square distance."""
    names = list(views)
    stacked = []
    for c in committee:
        block = np.zeros((len(names) * k_max, c.n_features))
        start = names.index(c.representation) * k_max
        block[start : start + c.k] = views[c.representation].metric(c, left_out)
        stacked.append(block / np.sqrt(len(committee)))
    wide = np.concatenate(stacked, axis=1)
    # wide @ wide.T is all that distances see; its factor has few columns
    values, axes = np.linalg.eigh(wide @ wide.T)
    keep = values > 1e-12 * values[-1]
    return (axes[:, keep] * np.sqrt(values[keep]))[:, ::-1]


def committee_metric(
    views: Mapping[str, Representation],
    committee: Sequence[Candidate],
    left_out: Sequence[int],
    k_max: int,
    contrast: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stacked map of a committee, refined by contrast; with it stacked coordinates of the field, and their mean."""
    matrix = committee_map(views, committee, left_out, k_max)
    field = np.concatenate([view.field_coords() for view in views.values()], axis=1)
    mean = field.mean(axis=0)
    if contrast:
        first = next(iter(views.values()))
        use = ~np.isin(first.clusters, [first.names[j] for j in left_out])
        members = np.concatenate([view.centred[use] for view in views.values()], axis=1) @ matrix
        belonging = np.mean([view.belonging(left_out)[use] for view in views.values()], axis=0)
        matrix = matrix @ refine((field - mean) @ matrix, members, first.clusters[use], belonging)
    return matrix, field, mean
