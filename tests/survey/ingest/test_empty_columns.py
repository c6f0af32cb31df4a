"""Label columns that hold nothing but their fill value, written from several threads, never end an ingest."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from chemscale import open_survey
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.table import TableSource

EMPTY = ("teff", "logg", "snr", "fe_h", "alpha_m", "vmicro", "extinction", "reddening")


def ingested(folder, times):
    n = 4
    arrays = {name: np.full(n, np.nan, "f4") for name in EMPTY} | {"cluster": np.array([""] * n)}
    arrays |= {"flux": np.ones((n, 20)), "error": np.full((n, 20), 0.01), "wavelength": 5000.0 + np.arange(20)}
    np.savez(folder / "t.npz", **arrays)
    source = TableSource(str(folder / "t.npz"))
    every = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change as often as they can
    try:
        for _ in range(times):
            ingest(source, folder / "s.zarr", overwrite=True, progress=False)
            survey = open_survey(folder / "s.zarr")
            assert all(np.isnan(survey[name].values).all() for name in EMPTY)
    finally:
        sys.setswitchinterval(every)


def test_empty_columns_are_stored_again_and_again(tmp_path):
    ingested(tmp_path, 8)


@pytest.mark.slow
def test_two_hundred_ingests_with_empty_columns_all_finish(tmp_path):
    ingested(tmp_path, 200)
