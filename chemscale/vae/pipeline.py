"""The VAE's stages on a run directory: train (see :mod:`~chemscale.vae.fitting`), infer, anomalies, flags, evaluate.

Products below the run: those of the training, ``latents.zarr``, ``anomalies.json`` and ``anomalies.zarr``,
``flags.json`` and ``flags.zarr``, ``vae_evaluation.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from chemscale.errors import DataError, InputError
from chemscale.runtime.devices import choose_device
from chemscale.runtime.run import Run
from chemscale.simulation.truth import read_noise_free
from chemscale.vae import alignment
from chemscale.vae import evaluate as evaluation
from chemscale.vae.checkpoint import load_model, read_record
from chemscale.vae.data import identifiers
from chemscale.vae.fitting import FOLDER, fit, open_source, run_of, train
from chemscale.vae.inference import check_grid, infer_survey
from chemscale.vae.product import PRODUCT, open_latents
from chemscale.vae.star_tables import Latents, find_anomalies, find_flags
from chemscale.vae.truth import noise_free_l2, read_truth

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["FOLDER", "anomalies", "evaluate", "fit", "flags", "infer", "latents", "open_source", "train"]

logger = logging.getLogger(__name__)


def infer(
    store: str | xr.Dataset,
    run: Run | str | Path,
    *,
    client: Client | None = None,
    overwrite: bool = False,
    device: str | None = None,
    bfloat16: bool = False,
    product: str = PRODUCT,
) -> dict[str, Any]:
    """Latents and scores of every star of a survey into ``latents.zarr`` of the run; one pass, resumable.

    Parameters as in :func:`~chemscale.vae.inference.infer_survey`.

    Examples
    --------
    >>> import chemscale
    >>> chemscale.infer_vae("nowhere.zarr", "run")
    Traceback (most recent call last):
    ...
    chemscale.errors.StoreError: no survey store at ...nowhere.zarr...
    """
    ds, path = open_source(store)
    where = run_of(run)
    where.need(f"{FOLDER}/model.json", f"chemscale vae train STORE --run {where.path}")
    check_grid(ds, read_record(where.path / FOLDER / "model.json"))  # a refusal leaves the stage as it was
    where_to_run = str(choose_device(device)) if client is None else device or "what each worker has"
    with where.stage("vae.infer", {"product": product, "device": where_to_run}) as stage:
        summary = infer_survey(
            ds,
            where.path / FOLDER,
            where.path / product,
            store=path,
            client=client,
            overwrite=overwrite,
            device=device,
            bfloat16=bfloat16,
            made_from=where.inputs(product),
        )
        stage.note(**summary)
    return summary


def finished_latents(run: Run | str | Path, product: str = PRODUCT) -> tuple[Latents, dict[str, Any]]:
    """Finished latents of a run, to be read block by block, and the model's record."""
    where = run_of(run)
    record = read_record(where.path / FOLDER / "model.json")
    if where.has(f"{product}.partial") and not where.has(product):
        raise DataError(
            f"{where.path / product} is not finished", "run `chemscale vae infer STORE` again: it carries on"
        )
    where.need(product, f"chemscale vae infer STORE --run {where.path}")
    ds = open_latents(where.path / product)
    if ds.attrs.get("model") != record["sha256"]:
        raise InputError(
            f"{where.path / product} was made with other weights than {FOLDER}/model.safetensors",
            "run `chemscale vae infer STORE --overwrite` again",
        )
    path = str((where.path / product).absolute())
    return Latents(path, int(ds.sizes["star"]), record["held_out"], record["split_seed"]), record


def latents(run: Run | str | Path, product: str = PRODUCT) -> tuple[xr.Dataset, dict[str, Any], np.ndarray]:
    """Finished latents of a run (lazy), the model's record, and which stars were held out."""
    found, record = finished_latents(run, product)
    ds = open_latents(Path(found.path))
    return ds, record, found.held_out(np.asarray(ds["star_id"].values))


def anomalies(
    run: Run | str | Path,
    *,
    false_alarm: float = 0.01,
    top: int = 1000,
    product: str = PRODUCT,
    client: Client | None = None,
) -> dict[str, Any]:
    """Ranked anomalous stars of a run, calibrated on held-out stars; writes ``anomalies.json`` and ``anomalies.zarr``.

    See :func:`chemscale.vae.anomalies.calibrate` for scores and causes. Two passes over the latents, in blocks, on
    the workers of `client` where there is one.
    """
    where = run_of(run)
    with where.stage("anomalies", {"false_alarm": false_alarm, "top": top}) as stage:
        found, _ = finished_latents(where, product)
        calibration, tally = find_anomalies(
            found,
            where.path / "anomalies.zarr",
            false_alarm=false_alarm,
            top=top,
            windows=_windows(where),
            client=client,
            made_from=where.inputs("anomalies.zarr"),
        )
        summary = {
            "false_alarm": false_alarm,
            "stars": found.stars,
            "flagged": tally.flagged,
            "flagged_held_out": tally.held_out_flagged / tally.held_out if tally.held_out else None,
            "calibrated_on": calibration.n_stars,
            "thresholds": calibration.thresholds,
            "causes": dict(tally.causes),
            "ranked": tally.ranked,
        }
        where.save_json("anomalies.json", summary)
        stage.note(**{k: v for k, v in summary.items() if k != "ranked"})
    return summary


def _windows(where: Run) -> np.ndarray | None:
    """Central wavelengths of the windows of the local score, from the run's survey."""
    from chemscale.vae.scores import WINDOW

    try:
        ds, _ = open_source(where.store)
    except Exception as err:
        logger.debug("no wavelengths for the windows: %s", err)
        return None
    wave = np.asarray(ds["wavelength"].values)
    return np.array([wave[i : i + WINDOW].mean() for i in range(0, wave.size, WINDOW)])


def flags(
    run: Run | str | Path,
    *,
    rules: Mapping[str, Any] | None = None,
    labels: Mapping[str, Mapping[str, float]] | None = None,
    survey_labels: bool = True,
    purity: float | None = None,
    product: str = PRODUCT,
    client: Client | None = None,
) -> dict[str, Any]:
    """Chemically enhanced or depleted stars; writes ``flags.json`` and ``flags.zarr``.

    Two passes over the latents, in blocks, on the workers of `client` where there is one. Calibrations and thresholds
    are learned from a sample of at most :data:`~chemscale.vae.star_tables.SAMPLE_STARS` stars and all labelled ones.

    Parameters
    ----------
    rules : mapping, optional
        Name -> cuts as in :data:`chemscale.vae.flags.PRESETS`, added to the presets.
    labels : mapping, optional
        star_id -> {latent: abundance}: a handful of stars that fix signs and give the scale in
        dex.
    survey_labels : bool
        Without `labels`: calibrate on the abundances the survey itself has of stars that were
        trained on. A class that cuts on an abundance nobody knows cannot be judged, and is not. False, and no
        `labels`: signs come from the decoders (more of an element deepens lines) and cuts are in standard
        deviations of the population, as in the paper.
    purity : float, optional
        Wanted fraction of true members among the flagged, instead of each class's own.
    """
    where = run_of(run)
    with where.stage("flags", {"rules": rules, "labelled": len(labels or {}), "purity": purity}) as stage:
        found, _ = finished_latents(where, product)
        network, _ = load_model(where.path / FOLDER)
        summary, calibrated = find_flags(
            found,
            where.path / "flags.zarr",
            network.config.latents,
            _signs(network, found),
            rules=rules,
            labels=labels,
            survey=_survey_of(where, found) if survey_labels and not labels else None,
            purity=purity,
            plain=not labels and not survey_labels,
            client=client,
            made_from=where.inputs("flags.zarr"),
        )
        summary["calibrated_on"] = "labels" if labels else "survey" if calibrated else "nothing"
        where.save_json("flags.json", summary)
        stage.note(**{k: v for k, v in summary.items() if k != "stars"})
    return summary


def _survey_of(where: Run, found: Latents) -> str | None:
    """Path of the run's survey, where it has the stars of the latents."""
    if not where.store:
        return None
    ds, path = open_source(where.store)
    return path if ds.sizes.get("star") == found.stars else None


def _signs(network: Any, found: Latents) -> dict[str, int]:
    """Sign of each latent by the decoders' response: -1 where more of the latent makes lines shallower."""
    import torch

    from chemscale.vae.model import LatentPosterior

    ds = found.read((0, min(4096, found.stars)), "mean", "auxiliary")
    mean = np.asarray(ds["mean"].values)
    good = np.isfinite(mean).all(1)
    posterior = LatentPosterior(
        torch.from_numpy(mean[good]), torch.empty(0), torch.from_numpy(np.asarray(ds["auxiliary"].values)[good])
    )
    change = network.response(posterior)
    return {name: (-1 if c > 0 else 1) for name, c in zip(network.config.latents, change)}


def evaluate(
    run: Run | str | Path,
    *,
    store: str | xr.Dataset | None = None,
    truth: str | Path | None = None,
    against: str = "",
    product: str = PRODUCT,
) -> dict[str, Any]:
    """How well the latents do against the survey's labels, on held-out stars; writes ``vae_evaluation.json``.

    See :func:`chemscale.vae.evaluate.evaluate` for the keys. Latents that are not there yet, or only in part, are
    inferred first.

    Parameters
    ----------
    truth : path, optional
        Noise-free spectra of a simulation, see :func:`~chemscale.vae.truth.read_truth`; default those of the truth
        store, where ``simulate --noise-free`` kept them. Without any
        `relative_l2` is estimated by taking the errors' share away.
    against : {'', 'truth', 'labels'}
        What latents and flags are judged by: the true labels beside a simulated store, or the survey's own. '' takes
        the truth where there is one, and reports the correlations with the labels too (`r_labels`).
    """
    where = run_of(run)
    if not where.has(product):
        infer(store if store is not None else where.store, where, product=product)
    with where.stage("vae.evaluate") as stage:
        ds, _, out = latents(where, product)
        survey, path = open_source(store if store is not None else where.store)
        network, _ = load_model(where.path / FOLDER)
        judged, kind = evaluation.judged_against(survey, path, identifiers(ds), against, network.config.latents)
        ids, noise_free, errors = identifiers(ds), None, None
        if truth is not None:
            noise_free = read_truth(truth, ids, network.mean.numel())
        elif kind == "truth":
            noise_free = read_noise_free(str(path), ids)
        if noise_free is not None:
            errors = noise_free_l2(network, ds, noise_free, out)
        result = evaluation.evaluate(ds, survey, out, errors, judged)
        result["against"] = kind
        result["alignment"] = alignment.of_latents(network, ds, survey, out).to_dict()
        if kind == "truth":
            result["r_labels"] = evaluation.label_correlations(ds, survey, out)
        where.save_json("vae_evaluation.json", result)
        stage.note(**{k: v for k, v in result.items() if isinstance(v, (int, float))})
    return result
