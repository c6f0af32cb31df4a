"""Rows of a membership table without a spectrum: counted, and not called damaged inputs."""

from __future__ import annotations

import io

from releases import write_aspcap
from rich.console import Console

from chemscale.survey.info import render, store_info
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.apogee import ApogeeSource


def test_absent_members_are_not_quarantined(tmp_path):
    spectra = tmp_path / "spectra"
    for star in ("2M1", "2M2"):
        write_aspcap(spectra / f"aspcapStar-r12-l33-{star}.fits", star)
    (spectra / "aspcapStar-r12-l33-2M9.fits").write_bytes(b"")
    members = tmp_path / "members.csv"
    members.write_text("id,group\n2M1,NGC 188\n2M5,NGC 188\n2M6,M 67\n")
    source = ApogeeSource(str(spectra), members=str(members), member_key="id", member_column="group")
    summary = ingest(source, tmp_path / "s.zarr")
    assert (summary.n_rejected, summary.n_members_absent) == (3, 2)
    assert summary._facts()["quarantined inputs"] == 1
    info = store_info(tmp_path / "s.zarr")
    assert (info["n_stars"], info["n_rejected"], info["members_absent"]) == (2, 1, {"without a spectrum": 2})
    assert sum(info["rejected_by_reason"].values()) == 1 and len(info["rejected"]) == 3
    page = Console(file=io.StringIO(), width=100)
    render(info, page)
    assert "quarantined inputs 1" in page.file.getvalue()
    assert "2 rows of the membership table: 2 without a spectrum" in page.file.getvalue()
