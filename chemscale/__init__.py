"""chemscale: which stars of a spectroscopic survey were born together?

The names below are imported on first use, so ``import chemscale`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from chemscale._version import __version__

if TYPE_CHECKING:
    from chemscale.embedding.product import open_embedding
    from chemscale.rsca.doppelganger import doppelganger_rates
    from chemscale.rsca.metric import RSCA
    from chemscale.rsca.siblings import siblings
    from chemscale.runtime.run import Run
    from chemscale.schema import Flag, validate
    from chemscale.statistics.ppca import MaskedPPCA
    from chemscale.survey.conversions import from_spectra
    from chemscale.survey.ingest.datasets import write_survey
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.store.open import open_survey

_LAZY = {
    "Flag": "schema",
    "MaskedPPCA": "statistics.ppca",
    "RSCA": "rsca.metric",
    "Run": "runtime.run",
    "doppelganger_rates": "rsca.doppelganger",
    "from_spectra": "survey.conversions",
    "ingest": "survey.ingest.ingestion",
    "open_embedding": "embedding.product",
    "open_survey": "survey.store.open",
    "siblings": "rsca.siblings",
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
    "from_spectra",
    "ingest",
    "open_embedding",
    "open_survey",
    "siblings",
    "validate",
    "write_survey",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'chemscale' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
