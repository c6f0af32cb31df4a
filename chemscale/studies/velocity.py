"""Residuals of fast stars on a basis of slow stars: systematics tied to radial velocity (Figure 7, Appendix B)."""

from __future__ import annotations

from chemscale.quality.interstellar import velocity_windows
from chemscale.studies.interstellar import SELECTION, residual_figure
from chemscale.studies.registry import Study, StudyContext, StudyResult


def compute(context: StudyContext) -> StudyResult:
    """Residual spectrum and windows of appendix B."""
    s = context.settings
    fast = "fast stars, either way" if s["both_signs"] else "fast receding stars"
    found = residual_figure(context, velocity_windows, "absolute_residual", "absolute_control", fast)
    return StudyResult(
        **found,
        caption=(
            f"Mean absolute residual of {fast} (beyond {s['high']} km/s) on the basis of stars slower than "
            f"{s['low']} km/s. Yellow: pixels whose excess over slow stars stands out, where telluric or instrument "
            "residuals move with the star's velocity."
        ),
    )


STUDY = Study(
    "velocity",
    "Systematics that follow radial velocity",
    "de Mijolla & Ness 2021, Figure 7 (Appendix B)",
    compute,
    {"low": 5.0, "high": 80.0, "both_signs": False, **SELECTION},
)
