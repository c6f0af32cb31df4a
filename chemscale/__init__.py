"""chemscale: which stars of a spectroscopic survey were born together?

The names below are imported on first use, so ``import chemscale`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .rsca.doppelganger import doppelganger_rates
    from .rsca.metric import RSCA
    from .rsca.siblings import siblings
    from .runtime.run import Run
    from .schema import Flag, validate
    from .statistics.embedding import open_embedding
    from .statistics.ppca import MaskedPPCA
    from .survey.conversions import from_spectra
    from .survey.ingest import ingest
    from .survey.store import open_survey, write_survey

_LAZY = {
    "Flag": "schema",
    "MaskedPPCA": "statistics.ppca",
    "RSCA": "rsca.metric",
    "Run": "runtime.run",
    "doppelganger_rates": "rsca.doppelganger",
    "from_spectra": "survey.conversions",
    "ingest": "survey.ingest",
    "open_embedding": "statistics.embedding",
    "open_survey": "survey.store",
    "siblings": "rsca.siblings",
    "validate": "schema",
    "write_survey": "survey.store",
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
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
