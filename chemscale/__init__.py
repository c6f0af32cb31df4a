"""chemscale: which stars of a spectroscopic survey were born together?

The names below are imported on first use, so ``import chemscale`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from chemscale._version import __version__

if TYPE_CHECKING:
    from chemscale.embedding.product import open_embedding
    from chemscale.results.run import RunResults as Run
    from chemscale.results.run import open_latents
    from chemscale.rsca.doppelganger import doppelganger_rates
    from chemscale.rsca.metric import RSCA
    from chemscale.rsca.siblings import siblings
    from chemscale.schema import Flag, validate
    from chemscale.statistics.ppca import MaskedPPCA
    from chemscale.survey.export import export_spectra
    from chemscale.survey.from_spectra import from_spectra
    from chemscale.survey.ingest.datasets import write_survey
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.store.open import open_survey
    from chemscale.vae.fitting import train as train_vae
    from chemscale.vae.pipeline import infer as infer_vae

#: Public name -> module, and the name there where it is another.
_LAZY = {
    "Flag": "schema",
    "MaskedPPCA": "statistics.ppca",
    "RSCA": "rsca.metric",
    "Run": "results.run:RunResults",
    "doppelganger_rates": "rsca.doppelganger",
    "export_spectra": "survey.export",
    "from_spectra": "survey.from_spectra",
    "infer_vae": "vae.pipeline:infer",
    "ingest": "survey.ingest.ingestion",
    "open_embedding": "embedding.product",
    "open_latents": "results.run",
    "open_survey": "survey.store.open",
    "siblings": "rsca.siblings",
    "train_vae": "vae.fitting:train",
    "validate": "schema",
    "write_survey": "survey.ingest.datasets",
}

__all__ = [
    "RSCA",
    "Flag",
    "MaskedPPCA",
    "Run",
    "__version__",
    "doppelganger_rates",
    "export_spectra",
    "from_spectra",
    "infer_vae",
    "ingest",
    "open_embedding",
    "open_latents",
    "open_survey",
    "siblings",
    "train_vae",
    "validate",
    "write_survey",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'chemscale' has no attribute {name!r}")
    module, _, inner = _LAZY[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), inner or name)


def __dir__() -> list[str]:
    return sorted(__all__)
