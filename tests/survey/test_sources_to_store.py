"""Real files all the way into stores that obey the contract."""

from __future__ import annotations

import numpy as np

from chemscale import open_survey
from chemscale.schema import Flag, validate
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.sources.lamost import LamostSource


def test_real_apogee(shared_data, tmp_path):
    source = ApogeeSource(str(shared_data / "apogee" / "aspcapStar"))
    summary = ingest(source, tmp_path / "a.zarr", progress=False)
    assert summary.n_stars == 18 and not summary.rejected
    ds = open_survey(tmp_path / "a.zarr")
    validate(ds)
    flags = ds["flags"].values
    for start, stop in ((720, 910), (2370, 2470), (2600, 2750), (4300, 4600)):
        assert np.all(flags[:, start:stop] & Flag.INTERSTELLAR)
    assert np.all(flags[:, :246] & Flag.GAP)
    error = 1 / np.sqrt(np.maximum(ds["ivar"].values, 1e-30))
    assert np.all(error[flags == 0] <= 0.05 * 1.0001)
    assert 0.3 < np.mean(flags == 0) < 0.85
    assert ds["quality"].dtype == np.int64 and ds["source_file"].values[0].startswith("aspcapStar-r6")


def test_real_lamost_of_every_release(shared_data, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, n in (("lamost_dr10/spectra", 6), ("lamost_repeats/spectra", 6), ("lamost_dr1", 3)):
        for path in sorted((shared_data / name).glob("*.fits.gz"))[:n]:
            (folder / path.name).symlink_to(path)
    source = LamostSource(str(folder), [str(shared_data / "lamost_dr10" / "labels.csv")])
    summary = ingest(source, tmp_path / "l.zarr", progress=False)
    assert summary.n_stars == 15 and not summary.rejected
    ds = open_survey(tmp_path / "l.zarr")
    validate(ds)
    assert ds["wavelength"].attrs["medium"] == "vacuum"
    used = ds["flags"].values == 0
    assert 0.9 < np.median(ds["flux"].values[used]) < 1.05
    assert np.isfinite(ds["teff"].values).sum() == 6
    wave = ds["wavelength"].values
    sodium = (wave > 5890) & (wave < 5899)
    assert np.all(ds["flags"].values[:, sodium] & Flag.INTERSTELLAR)
