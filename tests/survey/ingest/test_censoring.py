"""The compiled sweep over pixels against the rules written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from chemscale.schema import Flag
from chemscale.survey.ingest import censoring_kernels as kernels
from chemscale.survey.ingest.censoring import NO_GAPS, censor, clean, error_limit
from chemscale.survey.ingest.writing import Counts

WINDOWS = [(3, 9), (40, 41), (90, 97)]
STRANGE = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e10, -1e10, 1e20, 1e38, 1e-40, -1.0)


@pytest.fixture
def block() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng()
    shape = (37, 97)
    flux = rng.normal(1, 0.1, shape).astype("f4")
    ivar = rng.uniform(0, 2000, shape).astype("f4")
    flags = np.where(rng.random(shape) < 0.1, rng.integers(0, 128, shape), 0).astype("u1")
    for array in (flux, ivar):
        where = rng.random(shape) < 0.2
        array[where] = rng.choice(np.array(STRANGE, "f4"), where.sum())
    ivar[5] = 0
    flux[6] = np.nan
    return flux, ivar, flags


def by_hand(flux, ivar, flags, max_error, gaps=None):
    """Section 4.1 of the RSCA paper, condition by condition."""
    with np.errstate(invalid="ignore"):
        absurd = ~np.isfinite(flux) | ~np.isfinite(ivar) | (np.abs(flux) >= 1e9) | (np.abs(ivar) >= 1e18)
        gap = (flux == 0) & ((flags & Flag.SURVEY_BAD) == 0)
        if gaps is not None:
            gap = gap | gaps
        noisy = (ivar <= 0) if max_error is None else (ivar <= 0) | (ivar < np.float32(1 / max_error**2))
    noisy = noisy & ~gap & ~absurd
    out = flags.copy()
    for where, bit in ((gap, Flag.GAP), (absurd, Flag.NON_FINITE), (noisy, Flag.LARGE_ERROR)):
        out[where] |= np.uint8(bit)
    for start, stop in WINDOWS:
        out[:, start:stop] |= np.uint8(Flag.INTERSTELLAR)
    return out


@pytest.mark.parametrize("max_error", [0.05, None])
@pytest.mark.parametrize("with_gaps", [False, True])
def test_flags(block, max_error, with_gaps):
    flux, ivar, flags = block
    gaps = np.arange(97) % 7 == 0 if with_gaps else None
    before = flags.copy()
    found = censor(flux, ivar, flags, max_error=max_error, gaps=gaps, windows=WINDOWS)
    np.testing.assert_array_equal(found, by_hand(flux, ivar, flags, max_error, gaps))
    np.testing.assert_array_equal(flags, before)


def test_what_is_stored_is_finite(block):
    flux, ivar, flags = block
    found = censor(flux, ivar, flags)
    bad = (found & Flag.NON_FINITE) != 0
    good_flux, good_ivar = flux.copy(), ivar.copy()
    clean(good_flux, good_ivar, found)
    assert np.isfinite(good_flux).all() and np.isfinite(good_ivar).all() and (good_ivar >= 0).all()
    assert not good_flux[bad].any() and not good_ivar[bad].any()
    np.testing.assert_array_equal(good_flux[~bad], flux[~bad])
    np.testing.assert_array_equal(good_ivar[~bad], np.maximum(ivar[~bad], 0))


def test_the_sweep_to_scattered_rows_is_censor_then_clean(block):
    flux, ivar, flags = block
    rows = np.random.default_rng().permutation(50)[: len(flux)]
    out = [np.full((50, 97), 9, a.dtype) for a in block]
    usable = np.empty(len(flux), bool)
    windows = np.array(WINDOWS)
    rules = kernels.Rules(error_limit(0.05), NO_GAPS, windows)
    kernels.censor_block(kernels.Pixels(flux, ivar, flags), rules, rows, kernels.Pixels(*out), usable)
    expected = censor(flux, ivar, flags, windows=WINDOWS)
    want_flux, want_ivar = flux.copy(), ivar.copy()
    clean(want_flux, want_ivar, expected)
    np.testing.assert_array_equal(usable, (want_ivar > 0).any(axis=1))
    assert not usable[5] and not usable[6]
    for got, want in zip(out, (want_flux, want_ivar, expected)):
        np.testing.assert_array_equal(got[rows[usable]], want[usable])
        assert not got[rows[~usable]].any()
        assert (np.delete(got, rows, axis=0) == 9).all()


def test_counts_of_a_store(block):
    flux, ivar, flags = (a.copy() for a in block)
    found = censor(flux, ivar, flags)
    clean(flux, ivar, found)
    filled = np.ones(len(flux), np.uint8)
    filled[[0, 20]] = 0
    counts = Counts(97)
    for rows in (slice(0, 10), slice(10, 37)):
        counts.add({"flux": flux[rows], "ivar": ivar[rows], "flags": found[rows]}, filled[rows])
    said, keep = counts.summary(), filled.astype(bool)
    used = (found[keep] == 0) & (ivar[keep] > 0)
    assert said["n_stars"] == 35 and said["n_empty"] == 2 and said["n_used"] == used.sum()
    np.testing.assert_array_equal(counts.used_per_pixel, used.sum(axis=0))
    assert said["flagged"] == {str(b.name).lower(): int(((found[keep] & b) != 0).sum()) for b in Flag}
    np.testing.assert_array_equal(said["coverage"], np.histogram(used.mean(axis=1), bins=20, range=(0, 1))[0])
    assert said["flux_range"] == [flux[keep].min(), flux[keep].max()]
