"""A small file-per-star source for tests of ingestion: one .npy of flux and error a star."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan


class ToySource:
    """Stars in ``DIR/<id>.npy``, each (2, P): flux and error. A bad file is rejected."""

    name = "toyfiles"

    def __init__(self, spectra: str, delay: float = 0.0, raise_on: str = "", mode: str = ""):
        self.spectra, self.delay, self.raise_on, self.mode = str(spectra), delay, raise_on, mode

    def describe(self) -> dict[str, Any]:
        return {"source": self.name, **vars(self)}

    def plan(self) -> SurveyPlan:
        items = []
        for i, name in enumerate(sorted(os.listdir(self.spectra))):
            if name.endswith(".npy"):
                labels = {"teff": 4000.0 + i, "cluster": "Toy 1" if i % 5 == 0 else "", "source_file": name}
                items.append(Item(name[:-4], os.path.join(self.spectra, name), labels))
        pixels = 40
        return SurveyPlan(
            "toyfiles",
            15000 + np.arange(pixels, dtype=float),
            "vacuum",
            items,
            labels=("teff", "snr", "source_file"),
            attrs={"normalisation": "none"},
        )

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        import time

        ids, flux, error, rejected = [], [], [], []
        for item in items:
            time.sleep(self.delay)
            if item.star_id == self.raise_on:
                raise RuntimeError("this reader has a bug")
            try:
                data = np.load(item.path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as err:
                rejected.append(Rejection(item.path, f"not an array: {type(err).__name__}", item.star_id))
                continue
            if data.shape != (2, len(wavelength)):
                rejected.append(Rejection(item.path, f"shape {data.shape}", item.star_id))
                continue
            ids.append(item.star_id)
            flux.append(data[0])
            error.append(data[1])
        shape = (len(ids), len(wavelength))
        f = np.array(flux, np.float32).reshape(shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            ivar = (1 / np.array(error, np.float32).reshape(shape) ** 2).astype(np.float32)
        if self.mode == "wrong shape":
            f = f[:, :-1]
        if self.mode == "wrong ids":
            ids = [*ids[:-1], "nobody"]
        snr = np.arange(len(ids), dtype=float)
        return StarBlock(ids, f, ivar, np.zeros(shape, np.uint8), {"snr": snr}, rejected)


def write_files(folder: Path, n: int = 60, seed: int = 0, pixels: int = 40) -> Path:
    """`n` readable toy files."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        flux = 1 + 0.1 * rng.standard_normal(pixels)
        flux[:3] = 0
        error = np.full(pixels, 0.01)
        error[5] = 1e10
        np.save(folder / f"star{i:04d}.npy", np.array([flux, error]))
    return folder
