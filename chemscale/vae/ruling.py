"""Whether an element rules its windows in cool stars, by the built-in lines and without an abundance.

In the paper's halo carbon spreads over more dex than metals do, and in cool stars it rules its own windows and darkens
those of iron: there the default iron decoder reads z_C (`given_cool`), and the carbon decoder reads z_M of warm stars
only (`given_warm`). Where carbon spreads less it rules no stars: z_C of cool ones would be half metals, and two
decoders that read each other's latent would turn the axes in a long training. How far both spread is told by stars of
4,600 to 6,500 K: each spectrum, less what its Teff and log g make of it, is a sum of the answers of both elements'
lines.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from chemscale.vae.config import ModelConfig
from chemscale.vae.data import read_rows, star_blocks
from chemscale.vae.element_lines import line_answers, line_strengths, parameter_surface
from chemscale.vae.prepare import Survey
from chemscale.vae.regions import RegionSet

logger = logging.getLogger(__name__)
#: Teff of the stars looked at, K, how many at most, and how many at least.
LOOKED_AT = (4600.0, 6500.0)
MOST, LEAST = 900, 100
#: Carbon rules where it spreads over this many times the dex that metals do.
RULES = 1.2


def with_ruling(survey: Survey, config: ModelConfig, regions: RegionSet) -> ModelConfig:
    """The model for this survey.

    Where a latent of `given_cool` rules no stars, none is read, and those of `given_warm` are read of all stars.
    """
    pair = next(((g.latent, other) for g in config.groups for other in g.given_cool), None)
    if pair is None or not {"teff", "logg"} <= set(survey.ds.variables):
        return config
    ratio = spread_ratio(survey, regions, *pair)
    if ratio is None or ratio >= RULES:
        return config
    logger.info("%s spreads over %.2f times the dex of %s: it rules no stars", pair[1], ratio, pair[0])
    groups = (replace(g, given=(*g.given, *g.given_warm), given_cool=(), given_warm=()) for g in config.groups)
    return replace(config, groups=tuple(groups))


def spread_ratio(survey: Survey, regions: RegionSet, first: str, second: str) -> float | None:
    """Over how many dex the elements of the `second` latent spread, over those of the `first`; None where unknown.

    Reads the blocks that hold the first :data:`MOST` training stars of the temperatures looked at.
    """
    teff, logg = (np.asarray(survey.ds[k].values, float) for k in ("teff", "logg"))
    wanted = survey.trained & np.isfinite(logg) & (teff > LOOKED_AT[0]) & (teff < LOOKED_AT[1])
    wanted &= np.cumsum(wanted) <= MOST
    if wanted.sum() < LEAST:
        return None
    claimed = np.any(list(regions.masks(survey.wavelength, survey.medium).values()), axis=0)
    parts = [
        read_rows(survey.ds, start, stop, wanted[start:stop])
        for start, stop in star_blocks(survey.ds)
        if wanted[start:stop].any()
    ]
    flux, weight = (np.concatenate([p[k] for p in parts])[:, claimed].astype(np.float64) for k in (0, 1))
    lines = line_answers((first, second), teff[wanted], logg[wanted], survey.wavelength, survey.medium)
    if set(lines) != {first, second}:
        return None
    surface = parameter_surface(teff[wanted], logg[wanted])
    found = line_strengths(flux, weight > 0, [one[:, claimed] for one in lines.values()], surface)
    low, high = np.percentile(found, (16, 84), axis=0)
    spread = dict(zip(lines, (high - low) / 2, strict=True))
    return float(spread[second] / spread[first]) if spread[first] > 0 else None
