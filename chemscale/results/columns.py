"""The columns of a run's table: what each holds, in which unit, and how a block of stars of it is read.

A column reads rows ``start`` to ``stop`` of its product when asked, so that a table of any length is written in the
memory of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from chemscale.embedding.product import open_embedding
from chemscale.errors import StoreError
from chemscale.results.features import RunFeatures
from chemscale.rsca.siblings import recommended
from chemscale.rsca.stars import text
from chemscale.runtime.product import in_order
from chemscale.runtime.run import Run
from chemscale.schema import VARIABLES, star_variables

#: Stars of a block.
BLOCK_STARS = 65_536
#: Unified Content Descriptors of the contract's variables.
UCDS = {
    "star_id": "meta.id;meta.main",
    "cluster": "meta.id.parent",
    "gaia_source_id": "meta.id.cross",
    "cluster_probability": "stat.probability",
    "ra": "pos.eq.ra;meta.main",
    "dec": "pos.eq.dec;meta.main",
    "teff": "phys.temperature.effective",
    "teff_error": "stat.error;phys.temperature.effective",
    "logg": "phys.gravity",
    "logg_error": "stat.error;phys.gravity",
    "fe_h": "phys.abund.Fe",
    "alpha_m": "phys.abund",
    "c_fe": "phys.abund",
    "vmicro": "phys.veloc.microTurb",
    "snr": "stat.snr",
    "radial_velocity": "spect.dopplerVeloc;pos.heliocentric",
    "velocity_scatter": "stat.stdev;spect.dopplerVeloc",
    "extinction": "phys.absorption",
    "reddening": "phys.absorption;em.opt.B;em.opt.V",
    "n_visits": "meta.number;obs",
    "spectral_class": "src.class",
    "quality": "meta.code.qual",
    "source_file": "meta.file",
}
#: Abundance that each latent is calibrated to, and its name in the table.
_CALIBRATED = {
    "metal": ("vae_fe_h", "[Fe/H]"),
    "alpha": ("vae_alpha_fe", "[alpha/Fe]"),
    "carbon": ("vae_c_fe", "[C/Fe]"),
}


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes
    ----------
    name : str
    read : callable
        ``read(start, stop)`` gives the values of these stars, (stop - start,).
    kind : {"text", "float32", "float64", "int64", "bool"}
    description, unit, ucd : str
    width : int
        Characters of the longest text; 0 for numbers.
    """

    name: str
    read: Callable[[int, int], np.ndarray]
    kind: str
    description: str
    unit: str = ""
    ucd: str = ""
    width: int = 0


@dataclass
class RunTable:
    """Columns of a run, and what was left out of them with the reason."""

    n_stars: int
    columns: list[Column]
    left_out: list[str] = field(default_factory=list)
    attrs: dict[str, Any] = field(default_factory=dict)

    def blocks(self, stars: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Values of every column, a block of stars at a time (:data:`BLOCK_STARS` by default)."""
        stars = stars or BLOCK_STARS
        for start in range(0, self.n_stars, stars):
            stop = min(start + stars, self.n_stars)
            yield {c.name: c.read(start, stop) for c in self.columns}


def gather(run: Run, *, features: int | None = None) -> RunTable:
    """The columns of everything that a run holds, one row a star of its survey.

    Reads identifiers and other text whole, once, and no spectrum.

    Parameters
    ----------
    run : Run
    features : int, optional
        RSCA features at most; by default those that tell clusters apart.

    Raises
    ------
    StoreError
        The run has neither an embedding nor latents.
    """
    from chemscale.survey.store.open import open_survey
    from chemscale.vae.product import PRODUCT, open_latents

    embedding = open_embedding(run.file("embedding.zarr")) if run.has("embedding.zarr") else None
    latents = open_latents(run.path / PRODUCT) if run.has(PRODUCT) else None
    base = embedding if embedding is not None else latents
    if base is None:
        raise StoreError(
            f"{run.path} has no results of stars yet",
            "run `chemscale rsca fit STORE --run RUN` or `chemscale vae infer STORE --run RUN` first",
        )
    ids = text(base["star_id"])
    out = RunTable(len(ids), [_text("star_id", ids, VARIABLES["star_id"].doc)], attrs={"run": str(run.path)})
    try:
        survey: xr.Dataset | None = open_survey(run.store)
        out.attrs["store"] = run.store
    except (StoreError, OSError) as err:
        survey = None
        out.left_out.append(f"labels that only the survey has: {err}")
    labels = embedding
    if survey is not None and _same(first := survey.isel(star=slice(0, len(ids))), ids):
        labels = first  # without the stars that were appended since
    elif survey is not None:
        out.left_out.append(f"labels of {run.store}: its stars are not those of the run")
    if labels is not None:
        out.columns += _labels(labels)
    if embedding is not None:
        out.columns += [_text("role", text(embedding["role"]), "field, member or unused: the star's part in the fit")]
        if run.has("rsca.zarr") or run.has("auto.zarr"):
            out.attrs["metric"] = str(recommended(run)["metric"])
            out.columns += _features(run, features)
    if latents is not None:
        if _same(latents, ids):
            out.columns += _latents(latents)
            out.columns += _verdicts(run, ids, out.left_out)
        else:
            out.left_out.append(f"{PRODUCT}: its stars are not those of the run's embedding")
    return out


def _same(ds: xr.Dataset, ids: np.ndarray) -> bool:
    return ds.sizes["star"] == len(ids) and np.array_equal(text(ds["star_id"]), ids)


def _text(name: str, values: np.ndarray, description: str) -> Column:
    width = int(max(values.dtype.itemsize // 4, 1))
    return Column(name, lambda a, b: values[a:b], "text", description, ucd=UCDS.get(name, ""), width=width)


def _lazy(variable: xr.DataArray, dtype: str) -> Callable[[int, int], np.ndarray]:
    """Reads a block of a star-first variable; the last block is kept, as its other columns come next."""
    kept: dict[tuple[int, int], np.ndarray] = {}

    def read(start: int, stop: int) -> np.ndarray:
        if (start, stop) not in kept:
            kept.clear()
            kept[start, stop] = np.asarray(variable.isel(star=slice(start, stop)).values).astype(dtype, copy=False)
        return kept[start, stop]

    return read


def _pick(read: Callable[[int, int], np.ndarray], k: int) -> Callable[[int, int], np.ndarray]:
    return lambda a, b: read(a, b)[:, k]


def _labels(ds: xr.Dataset) -> list[Column]:
    columns = []
    for name in star_variables(ds.variables):
        if name == "star_id":
            continue
        spec = VARIABLES[name]
        if spec.dtype == "str":
            values = text(ds[name])
            if (values != "").any():
                columns.append(_text(name, values, spec.doc))
        else:
            read = _lazy(ds[name], spec.dtype)
            columns.append(Column(name, read, spec.dtype, spec.doc, spec.units, UCDS.get(name, "")))
    if "abundance" in ds.variables:
        for variable, suffix, what, ucd in (
            ("abundance", "", "", "phys.abund"),
            ("abundance_error", "_error", "error of ", "stat.error;phys.abund"),
        ):
            if variable not in ds.variables:
                continue
            read = _lazy(ds[variable], "float32")
            for k, element in enumerate(text(ds["element"])):
                doc = f"{what}[{element}/H] of the survey"
                columns.append(Column(f"abundance_{element}{suffix}", _pick(read, k), "float32", doc, "dex", ucd))
    return columns


def _features(run: Run, most: int | None) -> list[Column]:
    """Features of the run's recommended metric and their errors."""
    found = RunFeatures.of_run(run, most=most)
    kept: dict[tuple[str, int, int], np.ndarray] = {}

    def read(what: str, start: int, stop: int) -> np.ndarray:
        if (what, start, stop) not in kept:
            kept.clear()
            kept["values", start, stop], kept["errors", start, stop] = (
                found.values(start, stop),
                found.errors(start, stop),
            )
        return kept[what, start, stop]

    columns = []
    for k, told in enumerate(found.titles):
        name = f"rsca_{k + 1}"
        columns += [
            Column(name, _pick(partial(read, "values"), k), "float32", told),
            Column(f"{name}_error", _pick(partial(read, "errors"), k), "float32", f"error of {name}"),
        ]
    return columns


def _latents(latents: xr.Dataset) -> list[Column]:
    mean, covariance = _lazy(latents["mean"], "float32"), _lazy(latents["covariance"], "float32")
    columns = []
    for k, name in enumerate(text(latents["latent"])):
        doc = f"latent {name} of the autoencoder, posterior mean (no unit)"

        def error(a: int, b: int, k: int = k) -> np.ndarray:
            return np.sqrt(covariance(a, b)[:, k, k])

        columns += [
            Column(f"latent_{name}", _pick(mean, k), "float32", doc),
            Column(f"latent_{name}_error", error, "float32", f"error of latent_{name}"),
        ]
    label = _lazy(latents["label"], "float32")
    for k, name in enumerate(text(latents["label_name"])):
        spec = VARIABLES.get(name)
        doc = f"{spec.doc if spec else name}, from the spectrum by the autoencoder"
        unit = spec.units if spec else ""
        columns.append(Column(f"vae_{name}", _pick(label, k), "float32", doc, unit, UCDS.get(name, "")))
    chi2 = _lazy(latents["chi2"], "float32")
    doc = "chi-square of the autoencoder's reconstruction per used pixel"
    return [*columns, Column("vae_chi2", _pick(chi2, 0), "float32", doc, ucd="stat.fit.chi2")]


def _verdicts(run: Run, ids: np.ndarray, left_out: list[str]) -> list[Column]:
    """Anomaly scores and causes, flags with their probabilities, abundances in dex."""
    columns: list[Column] = []
    for name, command in (("anomalies.zarr", "chemscale anomalies"), ("flags.zarr", "chemscale flags")):
        if not run.has(name):
            continue
        ds = in_order(xr.open_zarr(run.file(name), consolidated=False))  # columns come in this order
        if not _same(ds, ids):
            left_out.append(f"{name}: its stars are not those of the latents; run `{command}` again")
            continue
        columns += _anomalies(ds) if name == "anomalies.zarr" else _flags(ds)
    return columns


def _anomalies(ds: xr.Dataset) -> list[Column]:
    told = "score of the anomaly search; above 1 is anomalous"
    return [
        Column("anomaly_score", _lazy(ds["score"], "float32"), "float32", told),
        Column("anomalous", _lazy(ds["anomalous"], "bool"), "bool", "beyond the false-alarm rate", ucd="meta.code"),
        _text("anomaly_cause", text(ds["cause"]), "what the model could not explain; '' for ordinary stars"),
    ]


def _flags(ds: xr.Dataset) -> list[Column]:
    columns = []
    for variable in map(str, ds.data_vars):
        if variable.startswith("abundance_") and not variable.endswith("_error"):
            latent = variable.removeprefix("abundance_")
            name, title = _CALIBRATED.get(latent, (f"vae_{latent}", f"abundance of {latent}"))
            for suffix, what, ucd in (("", "", "phys.abund"), ("_error", "error of ", "stat.error;phys.abund")):
                doc = f"{what}{title} calibrated from the latents"
                read = _lazy(ds[variable + suffix], "float32")
                columns.append(Column(name + suffix, read, "float32", doc, "dex", ucd))
        elif variable.startswith("flag_"):
            doc = f"flagged as {variable.removeprefix('flag_').replace('_', ' ')}"
            columns.append(Column(variable, _lazy(ds[variable], "bool"), "bool", doc, ucd="meta.code"))
        elif variable.startswith("probability_"):
            doc = f"probability of the class {variable.removeprefix('probability_').replace('_', ' ')}"
            columns.append(Column(variable, _lazy(ds[variable], "float32"), "float32", doc, ucd="stat.probability"))
    return columns
