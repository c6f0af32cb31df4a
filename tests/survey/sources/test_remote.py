"""Releases in object stores: the same stars from a URL as from a folder (fsspec's memory file system)."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest
from releases import write_allstar, write_aspcap, write_lamost

from chemscale.errors import InputError
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.sources.lamost import LamostSource


@pytest.fixture
def bucket(tmp_path):
    write_aspcap(tmp_path / "s" / "apo25m" / "A" / "aspcapStar-r12-2M1.fits", "2M1", seed=1)
    write_aspcap(tmp_path / "s" / "apo25m" / "B" / "aspcapStar-r12-2M2.fits", "2M2", seed=2)
    write_lamost(tmp_path / "l" / "spec-1.fits.gz")
    rows = [{"APOGEE_ID": "2M1", "FIELD": "A"}, {"APOGEE_ID": "2M2", "FIELD": "B", "TEFF": 4321.0}]
    write_allstar(tmp_path / "allStar.fits", rows)
    (tmp_path / "members.csv").write_text("APOGEE_ID,CLUSTER\n2M1,M 67\n")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/bucket", recursive=True)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def test_apogee(bucket, tmp_path):
    blocks = []
    for root in (bucket, str(tmp_path)):
        source = ApogeeSource(f"{root}/s", f"{root}/allStar.fits", f"{root}/members.csv")
        plan = source.plan()
        blocks.append(source.read(plan.items, plan.wavelength, plan.elements))
        assert [i.labels["source_file"] for i in plan.items][1] == "apo25m/B/aspcapStar-r12-2M2.fits"
    far, near = blocks
    np.testing.assert_array_equal(far.flux, near.flux)
    assert far.star_id == near.star_id == ["2M1", "2M2"]
    assert far.labels["teff"].tolist() == [4500.0, 4321.0] and far.labels["cluster"].tolist() == ["M 67", ""]


def test_lamost(bucket):
    source = LamostSource(f"{bucket}/l")
    plan = source.plan()
    assert source.read(plan.items, plan.wavelength, ()).star_id == ["spec-1"]
    fsspec.filesystem("memory").rm("/bucket/l/spec-1.fits.gz")
    gone = source.read(plan.items, plan.wavelength, ())
    assert gone.star_id == [] and "cannot be read" in gone.rejected[0].reason
    with pytest.raises(InputError, match="nothing found"):
        LamostSource(f"{bucket}/nowhere").plan()
