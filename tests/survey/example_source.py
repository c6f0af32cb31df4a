"""A survey of one's own: text files `<star>.txt` with wavelength, flux and error, labels in `stars.csv`.

Register it in your package's pyproject.toml, then `chemscale ingest textfiles --option folder=DIR --out STORE`:

    [project.entry-points."chemscale.surveys"]
    textfiles = "example_source:TextFiles"
"""

from pathlib import Path

import numpy as np

from chemscale.survey.resample import Rebinner
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan


class TextFiles:
    name = "textfiles"

    def __init__(self, folder):
        self.folder = str(folder)

    def describe(self):
        return {"source": self.name, "folder": self.folder}

    def plan(self):
        """List the stars once, on the client."""
        table = np.genfromtxt(Path(self.folder, "stars.csv"), delimiter=",", names=True, dtype=None, encoding="utf-8")
        items, rejected = [], []
        for row in table:
            path = Path(self.folder, f"{row['star']}.txt")
            if path.is_file():
                labels = {"teff": float(row["teff"]), "fe_h": float(row["feh"]), "cluster": str(row["cluster"])}
                items.append(Item(str(row["star"]), str(path), labels))
            else:
                rejected.append(Rejection(str(path), "no spectrum", star_id=str(row["star"]), stage="plan"))
        grid = np.linspace(5000.0, 5400.0, 801)
        attrs = {"survey": "text files", "normalisation": "by the observer", "interstellar_windows": []}
        return SurveyPlan(self.name, grid, "air", items, labels=("teff", "fe_h"), attrs=attrs, rejected=rejected)

    def read(self, items, wavelength, elements):
        """Read some of them, on any worker; a file that cannot be read is rejected, never raised."""
        good, rejected, rows = [], [], []
        for item in items:
            try:
                wave, flux, error = np.loadtxt(item.path, unpack=True)
                rows.append(Rebinner(wave, wavelength)(flux, 1 / error**2))
                good.append(item)
            except (OSError, ValueError) as problem:
                rejected.append(Rejection(item.path, str(problem), item.star_id))
        flux, ivar, flags = (
            np.array([r[i] for r in rows]).reshape(-1, len(wavelength)).astype(t)
            for i, t in enumerate(("f4", "f4", "u1"))
        )
        labels = {name: np.array([i.labels[name] for i in good]) for name in ("teff", "fe_h", "cluster")}
        return StarBlock([i.star_id for i in good], flux, ivar, flags, labels, rejected)
