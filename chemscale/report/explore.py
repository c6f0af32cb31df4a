"""The interactive parts of the report: a bounded sample of stars with coordinates, labels and some spectra.

Spectra of stars whose observation is not embedded are rebuilt in the browser from their PPCA coordinates, so any star
of the sample can be looked at; features are the metric's linear map of the same coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from chemscale.embedding.product import open_embedding
from chemscale.errors import ChemscaleError, InputError, StoreError
from chemscale.report import charts, products
from chemscale.results.features import RunFeatures
from chemscale.results.spectra import lines as spectral_lines
from chemscale.rsca.siblings import recommended
from chemscale.rsca.stars import FIT_COMMAND, cleaned_of, read_rows, text
from chemscale.runtime.run import Run
from chemscale.schema import EXTRA, VARIABLES
from chemscale.statistics.masked import masked_moments
from chemscale.survey.store.cleaning import check_cleaned

#: Features shown and compared at most.
MAX_FEATURES = 30


@dataclass
class Model:
    """Basis and metric of a run as plain arrays."""

    mean: np.ndarray
    components: np.ndarray
    explained_variance: np.ndarray
    noise: float
    sigma_clust: np.ndarray | None = None

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.components)


@dataclass
class Stars:
    """The embedded sample; `payload` is what the page's script reads."""

    payload: dict[str, Any]
    note: str
    n: str
    survey_name: str
    n_survey: int
    provenance: dict[str, Any] = field(default_factory=dict)
    space: str = ""
    n_spectra: int = 0
    bin_factor: int = 1
    wavelength: np.ndarray = field(default_factory=lambda: np.empty(0))
    wavelength_title: str = ""
    mean_flux: np.ndarray | None = None
    censored: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass
class Gallery:
    """Stars that the models reconstruct worst."""

    payload: dict[str, Any] | None
    stars: list[dict[str, str]]
    note: str


def load_model(run: Run) -> Model | None:
    """Basis (and metric, where there is one) of a run, or None where nothing was fitted."""
    if not run.has("ppca.zarr"):
        return None
    from chemscale.rsca.pipeline import load_metric
    from chemscale.statistics.ppca import MaskedPPCA

    ppca = MaskedPPCA.from_dataset(run.open_dataset("ppca.zarr").load())
    model = Model(
        mean=np.asarray(ppca.mean_, float),
        components=np.asarray(ppca.components_, float),
        explained_variance=np.asarray(ppca.explained_variance_, float),
        noise=float(np.nanmedian(np.asarray(ppca.noise_variance_, float))),
    )
    if run.has("rsca.zarr"):
        model.sigma_clust = load_metric(run).sigma_clust_
    return model


def gather(run: Run, model: Model | None, n_stars: int, n_spectra: int) -> Stars | None:
    """The sample of the interactive figures: of a metric, else of the VAE's latents; None where the run has neither."""
    if model is not None and model.sigma_clust is not None and run.has("embedding.zarr"):
        return _from_metric(run, model, n_stars, n_spectra)
    latents = products.open_product(run, "latents.zarr")
    if latents is not None and latents.attrs.get("complete"):
        return _from_latents(run, latents, n_stars, n_spectra)
    return None


def _from_metric(run: Run, model: Model, n_stars: int, n_spectra: int) -> Stars:
    embedding = open_embedding(run.need("embedding.zarr", FIT_COMMAND))
    rows = products.choose_rows(text(embedding["role"].values), n_stars)
    role = text(read_rows(embedding["role"], rows))
    cluster = np.where(role == "member", text(read_rows(embedding["cluster"], rows)), "")
    ids = text(read_rows(embedding["star_id"], rows))
    found = RunFeatures.of_run(run, most=MAX_FEATURES)
    features = found.rows(rows)
    best = recommended(run)
    kept = int(best.get("n_features") or (3 if found.metric == "paper" else features.shape[1]))
    payload = {
        **_table(embedding, rows, ids, cluster),
        "n_components": model.n_components,
        "n_features": features.shape[1],
        "n_kept": min(kept, features.shape[1]),
        "feature": "RSCA feature" if found.metric == "paper" else "feature of the searched metric",
        "coords": charts.pack(read_rows(embedding["coords"], rows)),
        "features": charts.pack(features),
    }
    payload["columns"] += _latents(run, ids, rows) + _found_by_vae(run, ids, rows)
    n_members = int(np.sum(role == "member"))
    stars = Stars(payload, _note(len(rows), n_members), f"{len(rows):,}", "survey", int(embedding.sizes["star"]))
    stars.space = "RSCA features"
    _add_spectra(run, model, stars, rows, ids, cluster != "", n_spectra)
    return stars


def _from_latents(run: Run, latents: xr.Dataset, n_stars: int, n_spectra: int) -> Stars | None:
    """Stars in the VAE's chemical latents, with the labels of the survey."""
    from chemscale.survey.store.open import open_survey

    survey = open_survey(run.store)
    if survey.sizes["star"] != latents.sizes["star"]:
        return None
    good = np.isfinite(np.asarray(latents["norm"].values))
    named = text(survey["cluster"].values) != "" if "cluster" in survey else np.zeros(len(good), bool)
    rows = products.choose_rows(np.where(good, np.where(named, "member", "field"), "unused"), n_stars)
    ids = text(read_rows(latents["star_id"], rows))
    cluster = text(read_rows(survey["cluster"], rows)) if "cluster" in survey else np.full(len(rows), "")
    z = read_rows(latents["mean"], rows).astype(np.float64)
    scatter = np.nanstd(z, axis=0)
    names = text(latents["latent"].values).tolist() if "latent" in latents.variables else None
    payload = {
        **_table(survey, rows, ids, cluster),
        "n_components": z.shape[1],
        "n_features": z.shape[1],
        "n_kept": z.shape[1],
        "feature": "latent",
        "feature_names": names,
        "coords": charts.pack(z),
        "features": charts.pack(z / np.where(scatter > 0, scatter, 1.0)),
    }
    payload["columns"] += _found_by_vae(run, ids, rows)
    n_members = int(np.sum(cluster != ""))
    stars = Stars(payload, _note(len(rows), n_members), f"{len(rows):,}", "survey", int(latents.sizes["star"]))
    stars.space = "latents, in units of their scatter"
    _add_spectra(run, None, stars, rows, ids, cluster != "", n_spectra)
    return stars


def _table(ds: xr.Dataset, rows: np.ndarray, ids: np.ndarray, cluster: np.ndarray) -> dict[str, Any]:
    """Identifiers, clusters and labels of the chosen rows, for the page."""
    columns = [
        {"name": name, "title": axis_title(name), "values": charts.pack(values)}
        for name, values in products.star_columns(ds, rows).items()
    ]
    return {"star_id": ids.tolist(), "cluster": cluster.tolist(), "columns": columns, "spectra": None}


def _note(n: int, members: int) -> str:
    return (
        f"{n - members:,} field stars and {members:,} cluster members. Click a star for its spectrum and its nearest "
        "stars; drag to move, or choose the lasso to mark stars in both panels. Diamonds are cluster members."
    )


def axis_title(name: str) -> str:
    """Axis title of a label in plain text, with its unit."""
    symbols = {"fe_h": "[Fe/H]", "alpha_m": "[α/M]", "c_fe": "[C/Fe]", "teff": "Teff", "logg": "log g"}
    spec = VARIABLES.get(name)
    text = symbols.get(name, name.removeprefix(EXTRA).replace("_", " "))
    unit = {"Angstrom": "Å"}.get(spec.units, spec.units) if spec else ""
    return f"{text} ({unit})" if unit else text


def _add_spectra(
    run: Run, model: Model | None, stars: Stars, rows: np.ndarray, ids: np.ndarray, is_member: np.ndarray, n: int
) -> None:
    from chemscale.survey.store.open import open_survey

    try:
        survey = open_survey(run.store)
    except (StoreError, OSError) as err:  # the page is still worth having; it says what is missing
        stars.note += f" Spectra are left out: {err}"
        return
    stars.survey_name = str(survey.attrs.get("survey", "survey"))
    stars.n_survey = int(survey.sizes["star"])
    stars.provenance = {k: _readable(v) for k, v in survey.attrs.items()}
    made_from = cleaned_of(run) if model else products.load_json(run, "vae/model.json").get("cleaned", ())
    try:
        check_cleaned(survey.attrs.get("cleaned", ()), made_from)
    except InputError as err:
        stars.note += f" Spectra are left out: {err}"
        return
    wave = survey["wavelength"].values
    factor = max(1, -(-len(wave) // products.MAX_PIXELS))
    medium = survey["wavelength"].attrs.get("medium", "")
    stars.wavelength_title = f"wavelength (Å, {medium})" if medium else "wavelength (Å)"
    stars.bin_factor, stars.wavelength = factor, products.bin_pixels(wave, factor)
    chosen = products.spectra_rows(survey, rows, is_member, n)
    if len(chosen) and np.array_equal(text(read_rows(survey["star_id"], rows[chosen])), ids[chosen]):
        flux, missing = products.read_spectra(survey, rows[chosen])
    else:  # the embedding covers other rows than the survey: spectra cannot be matched by position
        chosen, flux = chosen[:0], np.full((0, len(wave)), np.nan, np.float32)
        missing = np.ones_like(flux, bool)
    if len(chosen):
        stars.mean_flux = products.bin_pixels(masked_moments(flux, missing).mean, factor)
        stars.censored = products.bin_pixels(missing.mean(0), factor)
    binned = products.bin_pixels(flux, factor)
    codes, low, step = products.quantise(binned)
    stars.n_spectra = len(chosen)
    stars.payload["spectra"] = {
        "title": stars.wavelength_title,
        "wavelength": charts.pack(stars.wavelength),
        "mean": charts.pack(products.bin_pixels(model.mean, factor)) if model else None,
        "basis": charts.pack(products.bin_pixels(model.components, factor)) if model else None,
        "rows": chosen.tolist(),
        "flux": charts.pack(codes, "u2"),
        "low": low,
        "step": step,
        "lines": _lines(wave, str(medium)),
    }


def _lines(wave: np.ndarray, medium: str) -> list[list[Any]]:
    """The strongest line of each element in the spectra, then further strong ones: species and wavelength."""
    return [[species, round(w, 2)] for species, w in spectral_lines(float(wave[0]), float(wave[-1]), medium, most=60)]


def _readable(value: Any) -> Any:
    text = value if isinstance(value, str | int | float | bool) or value is None else repr(value)
    return text if not isinstance(text, str) or len(text) < 2000 else text[:2000] + " ..."


def _latents(run: Run, ids: np.ndarray, rows: np.ndarray) -> list[dict[str, Any]]:
    """Latent variables of the VAE for the chosen stars, as further columns."""
    ds = products.open_product(run, "latents.zarr")
    if ds is None or not ds.attrs.get("complete") or ds.sizes["star"] <= int(rows[-1]):
        return []
    if not np.array_equal(text(read_rows(ds["star_id"], rows)), ids):
        return []  # made from another survey: rows cannot be matched
    columns = []
    for variable, dim, title in (("mean", "latent", "latent z"), ("auxiliary", "auxiliary_latent", "latent w")):
        if variable not in ds:
            continue
        names = text(ds[dim].values) if dim in ds.variables else None
        for k, values in enumerate(read_rows(ds[variable], rows).T):
            name = f"{title} {names[k]}" if names is not None else f"{title}{k + 1}"
            columns.append({"name": name, "title": name, "values": charts.pack(values)})
    return columns


def _found_by_vae(run: Run, ids: np.ndarray, rows: np.ndarray) -> list[dict[str, Any]]:
    """Anomaly score and calibrated abundances of the chosen stars, where the run has them."""
    columns = []
    for name in ("anomalies.zarr", "flags.zarr"):
        ds = products.open_product(run, name)
        if ds is None or ds.sizes["star"] <= int(rows[-1]):
            continue
        if not np.array_equal(text(read_rows(ds["star_id"], rows)), ids):
            continue
        for variable in map(str, ds.data_vars):
            if variable == "score" or (variable.startswith("abundance_") and not variable.endswith("_error")):
                title = "anomaly score" if variable == "score" else f"{variable.split('_', 1)[1]} from latents (dex)"
                columns.append({"name": title, "title": title, "values": charts.pack(read_rows(ds[variable], rows))})
    return columns


def per_cluster(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rates as {method: {cluster: rate}} for the methods the report knows."""
    nested = evaluation.get("per_cluster") or {}
    methods = [m for m in charts.METHODS if any(m in v for v in nested.values())]
    return {m: {c: v.get(m) for c, v in nested.items()} for m in methods}


def cluster_sizes(evaluation: dict[str, Any]) -> dict[str, int]:
    """Members of each cluster."""
    return {c: int(v["n_members"]) for c, v in (evaluation.get("per_cluster") or {}).items()}


def global_rates(evaluation: dict[str, Any]) -> dict[str, float]:
    """Rates by method, the abundance baselines of the evaluation included."""
    values = {m: evaluation[m] for m in charts.METHODS if isinstance(evaluation.get(m), int | float)}
    for key, name in (("all", "abundances"), ("subset", "abundances_subset")):
        rate = (evaluation.get("abundances") or {}).get(key, {}).get("rsca")
        if isinstance(rate, int | float):
            values[name] = rate
    return values


def anomalies(run: Run, n: int = 8) -> Gallery | None:
    """Spectra, reconstructions and residuals of the strangest stars, where the run has VAE anomalies."""
    found = products.load_json(run, "anomalies.json")
    # a star without a finite score has no spectrum to show (no used pixel, or values beyond the model's reach)
    ranked = [r for r in found.get("ranked") or [] if None not in (r.get("score"), r.get("chi2"))][:n]
    latents = products.open_product(run, "latents.zarr")
    if not ranked or latents is None or not run.has("vae/model.json"):
        return None
    import torch

    from chemscale.survey.store.open import open_survey
    from chemscale.vae.checkpoint import load_model

    survey = open_survey(run.store)
    wanted = [str(r["star_id"]) for r in ranked]
    ids = text(latents["star_id"].values)
    rows = np.flatnonzero(np.isin(ids, wanted))
    if len(rows) != len(wanted) or not np.array_equal(text(read_rows(survey["star_id"], rows)), ids[rows]):
        return None  # the latents are of another survey
    flux, _ = products.read_spectra(survey, rows)
    try:
        model, record = load_model(run.path / "vae")
        check_cleaned(survey.attrs.get("cleaned", ()), record.get("cleaned", ()))
    except ChemscaleError as err:  # the rest of the page is worth having; it says why this part is missing
        return Gallery(None, [], f"The gallery is left out: {err}")
    with torch.no_grad():
        parts = [torch.from_numpy(np.asarray(read_rows(latents[v], rows), np.float32)) for v in ("mean", "auxiliary")]
        rebuilt = model.reconstruct(*parts).numpy()
    factor = max(1, -(-flux.shape[1] // products.MAX_PIXELS))
    order = [int(np.flatnonzero(ids[rows] == w)[0]) for w in wanted]
    medium = survey["wavelength"].attrs.get("medium", "")
    blank = int((found.get("causes") or {}).get("no data", 0))
    strange = max(found.get("flagged", len(ranked)) - blank, 0)
    return Gallery(
        payload={
            "title": f"wavelength (Å, {medium})",
            "wavelength": charts.pack(products.bin_pixels(survey["wavelength"].values, factor)),
            "flux": charts.pack(products.bin_pixels(flux[order], factor)),
            "model": charts.pack(products.bin_pixels(rebuilt[order], factor)),
        },
        stars=[{"star_id": w, "text": _why(r)} for w, r in zip(wanted, ranked, strict=True)],
        note=(
            f"{strange:,} of {found.get('stars', len(ids)):,} stars look unlike what the VAE "
            f"has learned, at a false-alarm rate of {found.get('false_alarm', 0):.1%} on clean held-out stars"
            f"{f'; {blank:,} more have no usable pixel or no finite score' if blank else ''}. "
            f"The {len(ranked)} strangest:"
        ),
    )


def _why(row: dict[str, Any]) -> str:
    """Score and cause of an anomaly in a sentence."""
    text = f"Score {row['score']:.2f}; {str(row.get('cause', '')).replace('_', ' ')}"
    if row.get("window_wavelength"):
        text += f"; worst near {row['window_wavelength']:.0f} Å"
    return text + f"; chi² per pixel {row['chi2']:.2f}."
