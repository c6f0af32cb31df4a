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
from chemscale.runtime.run import Run
from chemscale.simulation.truth import read_noise_free
from chemscale.vae import alignment
from chemscale.vae import anomalies as anomaly
from chemscale.vae import evaluate as evaluation
from chemscale.vae import flags as flagging
from chemscale.vae.checkpoint import load_model, read_record
from chemscale.vae.data import identifiers
from chemscale.vae.devices import choose_device
from chemscale.vae.fitting import FOLDER, fit, open_source, run_of, train
from chemscale.vae.inference import infer_survey
from chemscale.vae.product import PRODUCT, open_latents
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
    bfloat16: bool | None = None,
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


def latents(run: Run | str | Path, product: str = PRODUCT) -> tuple[xr.Dataset, dict[str, Any], np.ndarray]:
    """Finished latents of a run, the model's record, and which stars were held out."""
    from chemscale.vae.data import held_out

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
    out = held_out(np.asarray(ds["star_id"].values), record["held_out"], record["split_seed"])
    return ds, record, out


def anomalies(
    run: Run | str | Path, *, false_alarm: float = 0.01, top: int = 1000, product: str = PRODUCT
) -> dict[str, Any]:
    """Ranked anomalous stars of a run, calibrated on held-out stars; writes ``anomalies.json`` and ``anomalies.zarr``.

    See :func:`chemscale.vae.anomalies.calibrate` for scores and causes.
    """
    where = run_of(run)
    with where.stage("anomalies", {"false_alarm": false_alarm, "top": top}) as stage:
        ds, record, out = latents(where, product)
        calibration = anomaly.calibrate(ds, out, false_alarm)
        table = anomaly.score(ds, calibration)
        anomaly.save(where.path / "anomalies.zarr", ds, table, where.inputs("anomalies.zarr"))
        ranked = anomaly.ranked(ds, table, calibration, top, _windows(where, record))
        summary = {
            "false_alarm": false_alarm,
            "stars": int(ds.sizes["star"]),
            "flagged": int(table["anomalous"].sum()),
            "flagged_held_out": float(np.mean(table["anomalous"][out])) if out.any() else None,
            "calibrated_on": calibration.n_stars,
            "thresholds": calibration.thresholds,
            "causes": anomaly.count_causes(table),
            "ranked": ranked,
        }
        where.save_json("anomalies.json", summary)
        stage.note(**{k: v for k, v in summary.items() if k != "ranked"})
    return summary


def _windows(where: Run, record: Mapping[str, Any]) -> np.ndarray | None:
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
) -> dict[str, Any]:
    """Chemically enhanced or depleted stars; writes ``flags.json`` and ``flags.zarr``.

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
        ds, _, out = latents(where, product)
        network, _ = load_model(where.path / FOLDER)
        given: dict[str, np.ndarray] = {}
        if labels:
            given = flagging.labels_in_order(ds, labels)
        elif survey_labels:
            given = _survey_abundances(where, network.config.latents, out)
        result = flagging.apply(
            ds,
            network.config.latents,
            rules=rules,
            abundances=given,
            signs=_signs(network, ds),
            purity=purity,
            plain=not labels and not survey_labels,
        )
        flagging.save(where.path / "flags.zarr", ds, result, where.inputs("flags.zarr"))
        summary = result.summary(np.asarray(ds["star_id"].values))
        summary["calibrated_on"] = "labels" if labels else "survey" if given else "nothing"
        where.save_json("flags.json", summary)
        stage.note(**{k: v for k, v in summary.items() if k != "stars"})
    return summary


def _survey_abundances(where: Run, names: tuple[str, ...], held_out: np.ndarray) -> dict[str, np.ndarray]:
    """Abundances of the survey's own stars by latent, those held out left out; empty where it has none."""
    if not where.store:
        return {}
    ds, _ = open_source(where.store)
    if ds.sizes.get("star") != len(held_out):
        return {}
    known = evaluation.label_columns(ds, names)
    found = {}
    for latent in names:
        label = evaluation.label_of(latent)
        if label in known:
            values = np.where(held_out, np.nan, known[label])
            if np.isfinite(values).sum() >= 2:
                found[latent] = values
    return found


def _signs(network: Any, ds: xr.Dataset) -> dict[str, int]:
    """Sign of each latent by the decoders' response: -1 where more of the latent makes lines shallower."""
    import torch

    from chemscale.vae.model import LatentPosterior

    rows = slice(0, min(4096, ds.sizes["star"]))
    mean = np.asarray(ds["mean"][rows].values)
    good = np.isfinite(mean).all(1)
    posterior = LatentPosterior(
        torch.from_numpy(mean[good]), torch.empty(0), torch.from_numpy(np.asarray(ds["auxiliary"][rows].values)[good])
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

    See :func:`chemscale.vae.evaluate.evaluate` for the keys.

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
