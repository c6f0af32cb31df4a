"""Chemically enhanced and depleted stars, by k-sigma cuts or in dex (paper section 2.5).

Latents have no sign and no unit of their own. Signs come from a handful of labelled stars,
or from physics: where a decoder says that more of a latent makes its lines shallower, the
latent is turned round. Units come from labelled stars, two or more
(:mod:`~chemscale.vae.calibrate`); then a star is flagged by its probability of belonging to
the class (learned from the labelled members where there are hundreds,
:mod:`~chemscale.vae.membership`), as many stars as keep the set at the stated purity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.vae.flag_model import Flags, Posteriors, fit_flags

#: Cuts of the paper's two classes. `dex`: the definition, used where latents are calibrated, with
#: the `purity` wanted (the paper's precisions); `sigma`: position relative to the population's
#: mean, in standard deviations, for populations like the paper's halo ([Fe/H] = -1 lies 0.4
#: sigma *above* its mean of -1.23).
PRESETS: dict[str, dict[str, Any]] = {
    "cemp": {
        "title": "carbon-enhanced metal-poor",
        "sigma": {"metal": ("<", 0.4), "carbon": (">", 0.1)},
        "dex": {"metal": ("<", -1.0), "carbon": (">", 0.7)},
        "purity": 0.96,
    },
    "alpha_poor": {
        "title": "alpha-poor metal-poor",
        "sigma": {"metal": ("<", 0.4), "alpha": ("<", -1.5)},
        "dex": {"metal": ("<", -1.0), "alpha": ("<", 0.0)},
        "purity": 0.84,
    },
}
#: The cuts of the paper's Table 2 as its text has them: metal-poor are stars *below* the mean by 0.4 sigma ("low z_M"),
#: where the definition lies above it. They flag fewer stars of the class, and purer sets.
PRINTED: dict[str, dict[str, tuple[str, float]]] = {
    name: {k: (side, -0.4 if k == "metal" else cut) for k, (side, cut) in rule["sigma"].items()}
    for name, rule in PRESETS.items()
}
#: Names of abundances that labels may go by, and their latents.
COLUMNS = {"fe_h": "metal", "alpha_m": "alpha", "alpha_fe": "alpha", "c_fe": "carbon"}


def apply(
    ds: xr.Dataset,
    latents: Sequence[str],
    *,
    rules: Mapping[str, Any] | None = None,
    abundances: Mapping[str, np.ndarray] | None = None,
    signs: Mapping[str, int] | None = None,
    purity: float | None = None,
    k: float = 2.0,
    plain: bool = False,
) -> Flags:
    """Flag the stars of ``latents.zarr``, all of them in memory; :mod:`~chemscale.vae.star_tables` goes block by block.

    Parameters
    ----------
    latents : sequence of str
        Names of the latents, in order.
    rules : mapping, optional
        Further classes in the form of :data:`PRESETS`.
    abundances : mapping, optional
        Latent -> abundance of every star in dex (n,), NaN where unknown; two stars calibrate it.
    signs : mapping, optional
        Orientation of latents that are not calibrated; +1 where absent.
    purity : float, optional
        Wanted fraction of true members among the flagged, instead of each class's own.
    k : float
        Standard deviations beyond which a single latent counts as enhanced or depleted.
    plain : bool
        Cut classes in standard deviations of the population, as the paper does, where latents they cut on are not
        calibrated; else such a class cannot be judged.

    Raises
    ------
    InputError
        A rule that names unknown latents, or labels that cannot be used.
    """
    stars = Posteriors.of(ds)
    model = fit_flags(
        stars,
        latents,
        {**PRESETS, **dict(rules or {})},
        dict(abundances or {}),
        dict(signs or {}),
        optional=tuple(PRESETS),
        purity=purity,
        k=k,
        plain=plain,
    )
    return model.judge(stars)


def read_labels(path: str | Path) -> dict[str, dict[str, float]]:
    """Labelled stars from a CSV file with the column `star_id` and one column a latent, in dex.

    Columns may also have the labels' names: ``fe_h``, ``alpha_m`` or ``alpha_fe``, ``c_fe``.

    Raises
    ------
    InputError
        No such file, no `star_id`, or a value that is not a number.
    """
    import csv

    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"labels {path} cannot be read: {err}", "check the path") from err
    if not rows or "star_id" not in rows[0]:
        raise InputError(f"labels {path}: no column star_id", "star_id,metal,carbon,... in the first line")
    try:
        return {
            r["star_id"]: {COLUMNS.get(k, k): float(v) for k, v in r.items() if k != "star_id" and v and v.strip()}
            for r in rows
        }
    except (TypeError, ValueError, AttributeError) as err:
        raise InputError(f"labels {path}: {err}", "numbers in dex, empty where unknown") from err
