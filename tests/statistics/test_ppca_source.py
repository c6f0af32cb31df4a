"""What a pass over Dask arrays reads."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from reference import toy

from chemscale.statistics.ppca import MaskedPPCA
from chemscale.statistics.ppca_source import DaskSource


@pytest.mark.parametrize("alone", [False, True])
def test_inverse_variances_that_say_nothing_new_are_read_once(alone):
    flux, missing = toy(600, 60, 4)
    ivar = np.where(missing, 0.0, 25.0)
    if alone:
        ivar[7, 11] = 0.0  # no flag says so
    read: list[int] = []

    def counted(block, block_info=None):
        read.append(block_info[0]["chunk-location"][0])
        return block

    errors = da.from_array(ivar, chunks=(200, -1)).map_blocks(counted, dtype=ivar.dtype, meta=np.zeros((0, 0)))
    source = DaskSource(
        da.from_array(flux, chunks=(200, -1)), da.from_array(missing, chunks=(200, -1)), errors, weighted=False
    )
    found = MaskedPPCA(4).fit_source(source)
    assert len(read) == 3 * (found.n_passes_ if alone else 1)
    gone = missing | (ivar == 0)
    np.testing.assert_allclose(found.components_, MaskedPPCA(4).fit(flux, gone).components_, atol=1e-8)
