"""What a block of files says of its pixels, against the rules written out in NumPy."""

from __future__ import annotations

import numpy as np

from chemscale.formats.kernels import REASONS, informed_rows, weigh_block
from chemscale.schema import Flag


def test_weights_flags_and_verdicts():
    rng = np.random.default_rng()
    n, p = 23, 61
    flux, error = rng.normal(1, 0.2, (n, p)).astype("f4"), rng.uniform(0.001, 0.1, (n, p)).astype("f4")
    strange = np.array([np.nan, np.inf, -np.inf, 0, -1, 1e10, 3e10, 1e-13, 1e-20, 5e3, -5e3], "f4")
    for array in (flux, error):
        where = rng.random((n, p)) < 0.3
        array[where] = rng.choice(strange, where.sum())
    flux[0], flux[1], error[2] = np.nan, 0, 1e10
    inside, bad = rng.random(p) < 0.8, rng.random((n, p)) < 0.1
    ivar, flags, verdict = np.empty_like(flux), np.empty((n, p), "u1"), np.empty(n, "u1")
    weigh_block(flux, error, bad, inside, np.float32(1e10), np.float32(1e3), ivar, flags, verdict)

    with np.errstate(all="ignore"):
        wrong = bad | ((flux == 0) & inside) | (error >= 1e10) | ((np.abs(flux) > 1e3) & np.isfinite(np.abs(flux)))
        trusted = ~wrong & (flux != 0) & (error > np.float32(1e-12))
        expected = np.where(trusted, np.minimum(1 / error.astype("f8") ** 2, 1e30), 0)
    np.testing.assert_allclose(ivar, expected, rtol=1e-6)
    np.testing.assert_array_equal((flags & Flag.SURVEY_BAD) != 0, wrong)
    np.testing.assert_array_equal((flags & Flag.GAP) != 0, (flux == 0) & ~inside)
    assert [REASONS[v] for v in verdict[:3]] == [
        "flux is not finite in any pixel",
        "flux is 0 in every pixel",
        "no pixel has both a flux and a valid error",
    ]
    assert not verdict[3:].any()
    informed = np.empty(n, bool)
    informed_rows(flux, ivar, informed)
    np.testing.assert_array_equal(informed, ((ivar > 0) & np.isfinite(flux)).any(axis=1))


def test_no_mask_and_no_star():
    flux, error = np.ones((1, 5), "f4"), np.full((1, 5), 0.1, "f4")
    ivar, flags, verdict = np.empty_like(flux), np.empty((1, 5), "u1"), np.empty(1, "u1")
    none, inside = np.zeros((0, 0), bool), np.ones(5, bool)
    weigh_block(flux, error, none, inside, np.float32(1e10), np.float32(1e3), ivar, flags, verdict)
    np.testing.assert_allclose(ivar, 100, rtol=1e-6)
    weigh_block(flux[:0], error[:0], none, inside, np.float32(1e10), np.float32(1e3), ivar[:0], flags[:0], verdict[:0])
