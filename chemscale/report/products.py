"""What the report reads from a run: bounded samples only, whatever the size of the survey."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from chemscale.rsca.stars import read_rows
from chemscale.runtime.product import PARTIAL
from chemscale.runtime.run import Run
from chemscale.schema import VARIABLES, star_variables
from chemscale.studies.registry import names

#: Chunks of spectra the report decodes at most, and pixels it embeds a spectrum.
MAX_CHUNKS, MAX_PIXELS = 40, 2900
#: Field stars are taken from at most this many stretches of the per-star products.
_STRETCHES = 64


def open_product(run: Run, name: str) -> xr.Dataset | None:
    """A Zarr product of the run, lazy, or None where it is absent."""
    return run.open_dataset(name, chunks={}) if run.has(name) else None


def load_json(run: Run, name: str) -> dict[str, Any]:
    """A JSON product, or an empty dict where it is absent."""
    return run.load_json(name) if run.has(name) else {}


def choose_rows(role: np.ndarray, n_field: int, n_members: int = 2000, seed: int = 0) -> np.ndarray:
    """Sorted rows of up to `n_members` members and `n_field` field stars.

    Field stars come in stretches of neighbouring rows spread over the survey, so that their spectra lie in few
    chunks.
    """
    members, field = np.flatnonzero(role == "member"), np.flatnonzero(role == "field")
    rng = np.random.default_rng(seed)
    if len(members) > n_members:
        members = rng.choice(members, n_members, replace=False)
    if len(field) > n_field:
        length = -(-n_field // _STRETCHES)
        starts = np.linspace(0, len(field) - length, _STRETCHES).astype(np.int64)
        field = field[np.unique(np.concatenate([np.arange(s, s + length) for s in starts]))[:n_field]]
    return np.sort(np.concatenate([members, field]))


def star_columns(embedding: xr.Dataset, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Numeric labels of the chosen stars that have at least one finite value, in the order of the contract."""
    columns = {}
    for name in star_variables(embedding.variables):
        if not VARIABLES[name].dtype.startswith("float"):
            continue
        values = read_rows(embedding[name], rows).astype(float)
        if np.isfinite(values).any():
            columns[name] = values
    return columns


def spectra_rows(survey: xr.Dataset, rows: np.ndarray, is_member: np.ndarray, n: int) -> np.ndarray:
    """Positions in `rows` of up to `n` stars whose spectra are read from at most :data:`MAX_CHUNKS` chunks.

    Half of the places go to members; chunks that hold most of the wanted stars come first.
    """
    sizes = survey["flux"].chunks[0] if survey["flux"].chunks else (survey.sizes["star"],)
    chunk = np.searchsorted(np.cumsum(sizes), rows, side="right")
    wanted, counts = np.unique(chunk[is_member], return_counts=True)
    best = list(wanted[np.argsort(-counts, kind="stable")][: MAX_CHUNKS // 2])
    others = [c for c in np.unique(chunk) if c not in set(best)]
    spare = MAX_CHUNKS - len(best)
    if len(others) > spare:
        others = [others[i] for i in np.linspace(0, len(others) - 1, spare).astype(int)]
    reachable = np.flatnonzero(np.isin(chunk, [*best, *others]))
    members, field = reachable[is_member[reachable]], reachable[~is_member[reachable]]
    n_members = min(len(members), max(n // 2, n - len(field)))
    n_field = min(len(field), n - n_members)
    take = [members[_spread(len(members), n_members)], field[_spread(len(field), n_field)]]
    return np.sort(np.concatenate(take))


def _spread(n: int, k: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, k).astype(int)) if k and n else np.empty(0, int)


def read_spectra(survey: xr.Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flux (n, pixels), NaN where a pixel is not used, and the boolean `missing`, of sorted survey rows."""
    flags = read_rows(survey["flags"], rows)
    ivar = read_rows(survey["ivar"], rows)
    flux = read_rows(survey["flux"], rows).astype(np.float32)
    missing = (flags != 0) | ~(ivar > 0) | ~np.isfinite(flux)
    return np.where(missing, np.nan, flux), missing


def bin_pixels(values: np.ndarray, factor: int) -> np.ndarray:
    """Means over `factor` neighbouring pixels, NaN left out; the last axis shrinks."""
    n = values.shape[-1] // factor
    folded = values[..., : n * factor].reshape(*values.shape[:-1], n, factor)
    good = np.isfinite(folded)
    with np.errstate(invalid="ignore"):
        return np.where(good, folded, 0).sum(-1) / np.where(good.any(-1), good.sum(-1), np.nan)


def quantise(flux: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Flux as 16-bit steps between its 0.05 and 99.95 percentiles; 65535 = missing. Returns codes, low, step."""
    good = flux[np.isfinite(flux)]
    low, high = (float(v) for v in np.quantile(good, [0.0005, 0.9995])) if good.size else (0.0, 1.0)
    step = (high - low) / 65534 or 1.0
    with np.errstate(invalid="ignore"):
        codes = np.clip(np.round((flux - low) / step), 0, 65534)
    return np.where(np.isfinite(flux), codes, 65535).astype(np.uint16), low, step


def studies(run: Run) -> list[dict[str, Any]]:
    """Summaries of the studies present, each with the paths of its figure and data."""
    found = []
    for file in sorted(Path(run.file("studies")).glob("*/summary.json")):
        if file.parent.name.endswith(PARTIAL):
            continue
        summary = json.loads(file.read_text(encoding="utf-8"))
        summary["folder"] = file.parent
        found.append(summary)
    order = {name: i for i, name in enumerate(names())}
    return sorted(found, key=lambda s: order.get(s["name"], len(order)))
