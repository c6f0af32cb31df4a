"""What the studies of the VAE share: latents with their labels, cleaned spectra, small trainings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import DataError
from chemscale.schema import flag_mask
from chemscale.studies import style
from chemscale.studies.registry import StudyContext
from chemscale.survey.store.cleaning import check_cleaned
from chemscale.vae import pipeline
from chemscale.vae.checkpoint import load_model, read_record
from chemscale.vae.config import ModelConfig
from chemscale.vae.data import clean, identifiers, star_blocks, values_here
from chemscale.vae.evaluate import LABELS, judged_against, pearson
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.prepare import build, look_at, training_data
from chemscale.vae.regions import RegionSet
from chemscale.vae.train_config import TrainConfig
from chemscale.vae.training import Trainer

#: Labels latents are compared with, in the order of the paper's Table 1, and how axes name them.
SYMBOLS = {
    "fe_h": "[Fe/H]",
    "alpha_fe": r"[$\alpha$/Fe]",
    "c_fe": "[C/Fe]",
    "teff": r"$T_{\rm eff}$",
    "logg": r"$\log g$",
}
Z_NAMES = {"metal": r"$z_{\rm M}$", "alpha": r"$z_\alpha$", "carbon": r"$z_{\rm C}$"}


@dataclass
class Held:
    """Latents of a run's held-out stars beside their labels.

    Attributes
    ----------
    ds : xarray.Dataset
        ``latents.zarr``, all stars.
    out : ndarray of bool (n,)
        Held-out stars.
    labels : dict of str to ndarray (n,)
    kind : {'truth', 'labels'}
        Whose labels they are.
    """

    ds: xr.Dataset
    record: dict[str, Any]
    out: np.ndarray
    labels: dict[str, np.ndarray]
    kind: str = "labels"

    @property
    def names(self) -> list[str]:
        """Latents, in order."""
        return [str(n) for n in self.ds["latent"].values]

    @property
    def z(self) -> np.ndarray:
        """Posterior means of all stars (n, d)."""
        return np.asarray(self.ds["mean"].values, dtype=np.float64)

    @property
    def pairs(self) -> list[tuple[int, str, str]]:
        """(column, latent, label) of every latent whose abundance is known."""
        found = [(k, n, LABELS[n][1]) for k, n in enumerate(self.names) if n in LABELS]
        return [p for p in found if p[2] in self.labels]


def latents_of(context: StudyContext) -> tuple[xr.Dataset, dict[str, Any], np.ndarray]:
    """Latents of the run's own survey, the training's record, and which stars were held out.

    Raises
    ------
    DataError
        The model was used on another survey since: rows of its latents are not rows of the run's spectra and labels.
    """
    ds, record, out = pipeline.latents(context.run)
    ids, survey = identifiers(ds), context.survey
    if not np.array_equal(identifiers(survey.isel(star=slice(0, len(ids)))), ids):  # stars may be appended since
        raise DataError(
            f"the latents of {context.run.path} are those of other stars than {context.run.store} holds",
            f"chemscale vae infer {context.run.store} --run {context.run.path} --overwrite",
        )
    return ds, record, out


def held(context: StudyContext, *needed: str) -> Held:
    """Latents and labels of the run.

    Raises
    ------
    DataError
        The survey has no abundances to compare latents with, or not the labels `needed`, or other stars than the
        latents.
    """
    ds, record, out = latents_of(context)
    labels, kind = judged_against(context.survey, context.run.store or None, identifiers(ds))
    found = Held(ds, record, out, labels, kind)
    absent = [n for n in needed if n not in found.labels]
    if not found.pairs or absent:
        what = ", ".join(absent) or "abundances"
        raise DataError(f"the survey has no {what} to compare latents with", "ingest them as labels")
    return found


def correlations(found: Held) -> dict[tuple[str, str], float]:
    """|r| of every latent with every label of :data:`SYMBOLS`, over held-out stars (paper Table 1)."""
    z = found.z[found.out]
    return {
        (latent, label): abs(pearson(z[:, k], found.labels[label][found.out]))
        for k, latent in enumerate(found.names)
        for label in SYMBOLS
        if label in found.labels
    }


def spectra(ds: xr.Dataset, rows: np.ndarray, floor: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Cleaned flux and weight of some stars, block by block, in the order of `rows` (increasing)."""
    flux, weight = [], []
    for start, stop in star_blocks(ds):
        mine = rows[(rows >= start) & (rows < stop)] - start
        if mine.size:
            part = ds[["flux", "ivar", "flags"]].isel(star=slice(start, stop))
            f, i, b = (values_here(part[n])[mine] for n in ("flux", "ivar", "flags"))
            one, two = clean(f, i, b, selected=flag_mask("all"), floor=floor)
            flux.append(one)
            weight.append(two)
    if not flux:
        raise DataError("no stars to show", "use a larger survey")
    return np.concatenate(flux), np.concatenate(weight)


def model_of(context: StudyContext) -> ChemicalVAE:
    """The run's trained model, for the spectra of its store.

    Raises
    ------
    InputError
        They were cleaned since it was trained, or the cleaning was taken off.
    """
    model, record = load_model(context.run.path / pipeline.FOLDER)
    check_cleaned(context.survey.attrs.get("cleaned", ()), record.get("cleaned", ()), "model")
    return model


def retrain(
    ds: xr.Dataset, context: StudyContext, seed: int, *, model: dict[str, Any] | None = None, epochs: int = 0
) -> tuple[ChemicalVAE, np.ndarray]:
    """A model by the run's own recipe on another sample; and which of its stars were held out.

    Parameters
    ----------
    ds : xarray.Dataset
        Survey, in memory.
    model : dict, optional
        Changes to the model's configuration.
    epochs : int
        0: the recipe's, for so many stars.
    """
    record = read_record(context.run.path / pipeline.FOLDER / "model.json")
    config = TrainConfig.from_dict({**record["train"], "seed": seed, **({"epochs": epochs} if epochs else {})})
    survey = look_at(ds, float(record["held_out"]) or 0.3, int(record["split_seed"]))
    config = config if epochs else config.scaled(int(survey.trained.sum()))
    network = build(
        survey,
        ModelConfig.from_dict({**record["model"], **(model or {})}),
        config,
        RegionSet.from_dict(record["regions"]),
    )
    source, validation, _ = training_data(survey, network, config)
    Trainer(network, source, config, validation=validation).train()
    return network.eval(), ~survey.trained


def subset(context: StudyContext, stars: int, seed: int = 0) -> tuple[xr.Dataset, np.ndarray]:
    """Up to `stars` random stars of the survey, in memory, and their rows."""
    n = int(context.survey.sizes["star"])
    rows = np.sort(np.random.default_rng([seed, 17]).permutation(n)[:stars])
    return context.survey.isel(star=rows).compute(scheduler="synchronous"), rows


def contours(ax: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Contours around half, four fifths and 95 per cent of the stars, of a smoothed histogram."""
    from scipy.ndimage import gaussian_filter

    if x.size < 50:
        return
    counts, xe, ye = np.histogram2d(x, y, bins=60, range=[style.spread(x), style.spread(y)])
    smooth = gaussian_filter(counts, 1.0)
    order = np.sort(smooth.ravel())[::-1]
    levels = sorted({float(order[np.searchsorted(np.cumsum(order) / order.sum(), q)]) for q in (0.5, 0.8, 0.95)})
    centres = (xe[:-1] + xe[1:]) / 2, (ye[:-1] + ye[1:]) / 2
    ax.contour(*centres, smooth.T, levels=levels, colors="black", linewidths=0.7)
