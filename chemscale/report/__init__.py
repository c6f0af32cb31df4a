"""One self-contained HTML page from the results of a run."""

from __future__ import annotations

from chemscale.report.comparison import build_comparison
from chemscale.report.html import build_report

__all__ = ["build_comparison", "build_report"]
