"""Checkpoints: tensors in safetensors, everything else in JSON. Nothing is unpickled, ever.

A model is two files, ``NAME.safetensors`` and ``NAME.json``; the JSON names the SHA-256 of
the tensors it belongs to, so a half-replaced pair is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from chemscale.errors import InputError, StoreError
from chemscale.runtime.files import write_file
from chemscale.runtime.jsonio import write_json
from chemscale.vae.config import ModelConfig
from chemscale.vae.model import ChemicalVAE, learned_last

FORMAT = "chemscale-vae"
VERSION = 1


def grid_fingerprint(wavelength: np.ndarray, medium: str) -> str:
    """Identity of a wavelength grid: SHA-256 of the values to 1e-4 Angstrom and the medium."""
    rounded = np.round(np.asarray(wavelength, dtype=np.float64), 4)
    return hashlib.sha256(medium.encode() + rounded.astype("<f8").tobytes()).hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors atomically; returns the SHA-256 of the file."""
    payload = dump_tensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
    write_file(path, payload)
    return hashlib.sha256(payload).hexdigest()


def read_tensors(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises
    ------
    StoreError
        Missing or damaged file, or not the one `digest` names.
    """
    try:
        payload = path.read_bytes()
        if digest is not None and hashlib.sha256(payload).hexdigest() != digest:
            raise StoreError(f"{path} does not belong to its .json", "restore both files, or train again")
        return load_tensors(payload)
    except FileNotFoundError:
        raise StoreError(f"no weights at {path}", "run `chemscale vae train` first") from None
    except (SafetensorError, ValueError) as err:
        raise StoreError(f"{path} is not a readable safetensors file: {err}", "restore it, or train again") from err


def training_tensors(model: ChemicalVAE, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What a training has to remember, each tensor under the name of its part."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"{name}.{index}.{key}"] = torch.as_tensor(value)
    return tensors


def part_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors of one part of :func:`training_tensors`.

    >>> list(part_of({"model.mean": torch.zeros(1), "rival.0.step": torch.zeros(1)}, "rival"))
    ['0.step']
    """
    return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments that it had."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, field = key.partition(".")
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def read_record(path: Path) -> dict[str, Any]:
    """JSON beside the tensors."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"no model at {path}", "run `chemscale vae train STORE --run RUN` first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise StoreError(f"{path} cannot be read: {err}", "restore it, or train again") from err
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise StoreError(
            f"{path}: format {record.get('format')!r} version {record.get('version')!r}, "
            f"this chemscale reads {FORMAT!r} version {VERSION}",
            "use the chemscale that wrote it, or train again",
        )
    return record


def save_model(folder: Path, model: ChemicalVAE, facts: Mapping[str, Any], name: str = "model") -> str:
    """Write a model; returns its SHA-256.

    Parameters
    ----------
    facts : mapping
        JSON-able: survey, grid fingerprint, medium, regions, training configuration, ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(model.state_dict())
    for group, index in model.pixels.items():
        tensors[f"pixels.{group}"] = torch.from_numpy(index)
    digest = save_tensors(folder / f"{name}.safetensors", tensors)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": digest,
        "model": model.config.to_dict(),
        **dict(facts),
    }
    write_json(folder / f"{name}.json", record)
    return digest


def load_model(
    folder: Path, name: str = "model", device: str | torch.device = "cpu"
) -> tuple[ChemicalVAE, dict[str, Any]]:
    """Model and record written by :func:`save_model`, in evaluation mode.

    Raises
    ------
    StoreError
        Missing, damaged or mixed files.
    InputError
        Weights of another configuration.
    """
    record = read_record(folder / f"{name}.json")
    tensors = read_tensors(folder / f"{name}.safetensors", record.get("sha256"))
    config = ModelConfig.from_dict(record["model"])
    pixels = {k.removeprefix("pixels."): v.numpy() for k, v in tensors.items() if k.startswith("pixels.")}
    weights = {k: v for k, v in tensors.items() if not k.startswith("pixels.")}
    model = build_like(config, pixels, weights, where=str(folder / f"{name}.safetensors"))
    return model.to(device).eval(), record


def build_like(
    config: ModelConfig, pixels: Mapping[str, np.ndarray], weights: Mapping[str, Tensor], where: str = "weights"
) -> ChemicalVAE:
    """A model of `config` holding `weights`."""
    try:
        mean = weights["mean"].numpy()
        ppca = None
        if config.encoder == "ppca":
            ppca = {k: weights[f"encoder.front.{k}"].numpy() for k in ("components", "scale", "noise", "mean")}
        model = ChemicalVAE(config, pixels, mean, ppca)
        # models of earlier versions give latents and state errors as the encoder has them
        model.load_state_dict(learned_last(config.n_latents) | dict(weights))
    except (KeyError, RuntimeError) as err:
        text = str(err).replace("\n", " ")[:300]
        raise InputError(
            f"{where}: weights of another configuration ({text})", "load the .json and .safetensors of one training"
        ) from err
    return model
