"""The report says how the fit of the basis ended."""

from __future__ import annotations

from chemscale.report.findings import sections, words
from chemscale.runtime.run import Run


def test_verdict_and_outliers_are_shown(tmp_path):
    run = Run.create(tmp_path / "run", store="s.zarr")
    assert [s.id for s in sections(run)] == []
    with run.stage("ppca") as stage:
        verdict = "not converged after 31 passes: it reached the largest number of passes; 26 of 30 components"
        stage.note(verdict=verdict, outliers=6308, stars_with_outliers=4760, anomalous_stars=2)
    (basis,) = sections(run)
    text = [cell for table in basis.tables for row in table.rows for cell in row]
    assert verdict in text
    assert "6,308 pixels in 4,760 stars" in text


def test_keys_are_told_as_readers_write_them():
    assert words("correlation_with_fe_h") == "correlation with [Fe/H]"
    assert words("cemp") == "CEMP" and words("best_alpha_m_feature") == "best [α/M] feature"
    assert words("safe_height") == "safe height"
