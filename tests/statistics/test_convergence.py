"""A fit says whether it converged, and of what: never what a longer fit contradicts."""

from __future__ import annotations

import numpy as np
import pytest
from reference import largest_angle, toy

from chemscale.statistics.determined import determined, error_of_axes
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.statistics.ppca_shared import missing_information, orthonormal, to_come
from chemscale.statistics.progress import Stop, Trace


def crowded(n=500, p=80, signal=4, seed=0):
    """Four clear components, and eigenvalues that crowd at the edge of the noise."""
    flux, gone = toy(n, p, signal, noise=0.3, low=1.0, missing=0.05, seed=seed)
    return flux, gone, np.full(flux.shape, 1 / 0.09)


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_components_in_the_noise_are_not_determined(noise):
    ppca = MaskedPPCA(8, noise=noise, intrinsic="none", tol=1e-3).fit(*crowded())
    assert ppca.n_determined_ == 4
    assert np.all(ppca.axis_error_[:4] < 0.2)
    assert np.all(ppca.axis_error_[4:] > 0.5)


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_a_fit_never_reports_what_a_longer_fit_contradicts(noise, seed, tol):
    data = crowded(seed=seed)
    short = MaskedPPCA(8, noise=noise, intrinsic="none", tol=tol, loglike_tol=1e-12).fit(*data)
    long = MaskedPPCA(8, noise=noise, intrinsic="none", tol=1e-7, loglike_tol=1e-15, max_iter=400).fit(*data)
    assert short.converged_
    d = min(short.n_determined_, long.n_determined_)
    assert d == 4
    # What noise components do to the others while they turn is far below the statistical error.
    assert largest_angle(short.components_, long.components_[:d].T) < max(tol, 0.1 * short.axis_error_[d - 1])


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_a_fit_at_its_cap_says_so(noise):
    ppca = MaskedPPCA(8, noise=noise, max_iter=2).fit(*crowded())
    assert (ppca.converged_, ppca.stopping_reason_) == (False, "passes")
    assert ppca.verdict.startswith("not converged after 3 passes: it reached the largest number of passes")


def hidden_hits(seed, n=400, p=150):
    """Stars with few pixels, one of them hit: their components take from themselves what the stars do not show."""
    rng = np.random.default_rng(seed)
    flux, gone = toy(n, p, 3, noise=0.1, low=0.5, missing=0.05, seed=seed)
    stars = rng.choice(n, 4, replace=False)
    gone[stars] = rng.random((4, p)) < 0.6
    for star in stars:
        flux[star, rng.choice(np.flatnonzero(~gone[star]), 1)] += rng.uniform(6, 12)
    return flux, gone


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_that_creeps_is_not_converged_while_the_likelihood_has_much_to_win(seed):
    data = hidden_hits(seed)
    short = MaskedPPCA(8, tol=1e-2, loglike_tol=1e-15).fit(*data)
    long = MaskedPPCA(8, tol=1e-6, loglike_tol=1e-15, max_iter=300).fit(*data)
    assert short.converged_ and short.n_passes_ < 60
    # A turn by the statistical error costs half a unit a parameter; here half of it at most.
    d = short.n_determined_
    assert long.loglike_[-1] - short.loglike_[-1] < 0.5 * 0.5**2 * d * 150


def test_an_axis_that_rests_on_one_star_is_not_determined():
    flux, gone, _ = crowded()
    flux[11] += 40 * np.eye(80)[7]
    gone[:, 7] = np.arange(500) != 11  # a pixel nobody else has
    gone[11, 7] = False
    flux[12, 30] += 40.0
    ppca = MaskedPPCA(6, tol=1e-3).fit(flux, gone)
    shares = np.square(ppca.transform(flux, gone))
    alone = np.flatnonzero(shares.max(axis=0) / shares.sum(axis=0) > 0.5)
    assert alone.size
    assert ppca.axis_error_[alone].min() > 0.5


@pytest.mark.parametrize(
    ("angles", "loglikes", "reason"),
    [
        ([1.0, 0.5], [-9.0, -8.0], ""),
        ([1.0, 0.009], [-9.0, -8.0], ""),  # one small estimate after a large one is not believed
        ([0.03, 0.009], [-9.0, -8.0], "angle"),
        ([0.03, 0.012, 0.009], [-9.0, -8.0, -7.0], ""),  # it shrinks slowly: the one before has to be small, too
        ([0.012, 0.009, 0.007], [-9.0, -8.0, -7.0], "angle"),
        ([1.0, 0.5, 0.5], [-8.0, -8.0, -8.0], "loglike"),
        ([1.0] * 5, [-9.0, -8.0, -7.0, -6.0, -5.0], "passes"),
    ],
)
def test_reasons_to_stop(angles, loglikes, reason):
    trace, stop = Trace(), Stop(0.01, 5, 1e-9)
    for angle, loglike in zip(angles, loglikes):
        trace.add({"loglike": np.array(loglike)}, angle)
        done = stop.reached(trace)
    assert (trace.reason, done, trace.converged) == (reason, bool(reason), reason in ("angle", "loglike"))


def test_the_last_gap_counts():
    assert determined(np.array([0.1, 0.7, 0.2, 0.9])) == 3
    assert determined(np.array([0.9])) == 0


def test_a_cut_between_near_variances_determines_nothing_and_one_after_them_does():
    none, values, n = np.zeros(3), np.array([10.0, 2.0, 1.9]), 1000.0
    error = error_of_axes(none, values, np.append(values, 1.0), n)
    assert error[1] > 0.5 and error[0] < 0.05 and error[2] < 0.06
    assert determined(error) == 3
    # The subspace is no better than its worst axis: the first of three near ones may leave it, too.
    values = np.array([10.0, 2.2, 2.0, 1.8])
    alone = np.sqrt(2.0 * 1.8 / 0.2**2 / n)
    assert error_of_axes(np.zeros(4), values, values, n)[2] == pytest.approx(alone)
    assert error_of_axes(np.array([0.0, 0.05, 0.0, 0.0]), values, values, n)[2] == pytest.approx(
        max(alone, np.sqrt(0.05 + 2.2 * 1.8 / 0.4**2 / n))
    )


def test_an_axis_held_by_one_star_does_not_hide_what_is_determined_after_it():
    own, values = np.array([1.0, 0.001, 0.002, 0.9]), np.array([50.0, 10.0, 5.0, 1.2])
    error = error_of_axes(own, values, np.append(values, 1.0), 1000.0)
    assert error[0] > 0.9 and error[3] > 0.9
    assert np.all(error[1:3] < 0.1) and determined(error) == 3


def test_both_starts_reach_the_same_basis():
    flux, gone, _ = crowded()
    one, two = (MaskedPPCA(4, start=start).fit(flux, gone) for start in ("subsample", "incremental"))
    assert largest_angle(one.components_, two.components_.T) < 1e-4


def test_models_of_earlier_releases_are_read():
    flux, gone, _ = crowded()
    ds = MaskedPPCA(4).fit(flux, gone).to_dataset()
    old = ds.drop_vars(["axis_error", "outlier_count"])
    names = ("model", "n_components", "noise", "intrinsic", "tol", "max_iter", "random_state", "n_passes", "n_stars")
    old.attrs = {name: ds.attrs[name] for name in names} | {"converged": ""}
    back = MaskedPPCA.from_dataset(old)
    assert (back.converged_, back.stopping_reason_, back.n_determined_) == (False, "passes", 0)
    np.testing.assert_array_equal(back.transform(flux, gone), MaskedPPCA.from_dataset(ds).transform(flux, gone))


@pytest.mark.parametrize(("stars", "misfit"), [(1, 3), (3, 3), (6, 3)])
def test_a_few_stars_with_far_too_small_errors_do_not_keep_a_fit_from_converging(stars, misfit):
    """Their weight makes the intrinsic variance of pixels overshoot: undamped it jumped between two values for ever."""
    for seed in (11, 12):
        rng = np.random.default_rng(seed)
        basis = np.linalg.qr(rng.normal(size=(120, 9)))[0]
        error = np.full((200, 120), 0.05)
        error[:stars] = 0.002
        flux = (
            1 + (rng.normal(size=(200, 9)) * np.geomspace(3, 0.15, 9)) @ basis.T + error * rng.normal(size=(200, 120))
        )
        flux[:stars] += misfit * rng.normal(0, 0.02, (stars, 120)) * (rng.random((stars, 120)) < 0.3)
        missing = rng.random(flux.shape) < 0.05
        fitted = MaskedPPCA(6, noise="per-pixel", tol=0.01, max_iter=60).fit(flux, missing, 1 / error**2)
        assert fitted.converged_, (seed, fitted.angle_[-6:])


def test_what_missing_pixels_hide_of_an_axis_bounds_the_steps_to_come():
    count = np.array([100.0, 100.0, 40.0, 90.0])
    basis = np.array([[1.0, 0.0], [0.0, 0.6], [0.0, 0.0], [0.0, 0.8]])
    stats = {"n": np.array(100.0), "count": count}
    assert missing_information(stats, basis) == pytest.approx(0.1 * 0.64)
    assert to_come([0.2], 0.05) == pytest.approx(0.2 * 0.05 / 0.95)
    assert to_come([0.2], 0.95) == to_come([0.2]) == pytest.approx(0.2 * 9)
    assert to_come([0.2, 0.1], 0.05) == pytest.approx(0.1)


@pytest.mark.parametrize("inside", [np.array([[1.0], [0.0]]), np.array([[1.0, -2.0], [0.0, 0.0]])])
def test_search_directions_within_the_basis_leave_none(inside):
    """Two pixels and one component: what is left of a residual is rounding, or nothing at all."""
    basis = np.array([[1.0], [0.0]])
    assert orthonormal(basis, inside).shape == (2, 0)
    assert orthonormal(basis, np.zeros((2, 3))).shape == (2, 0)
    found = orthonormal(basis, np.concatenate([inside, [[0.5], [0.5]]], axis=1))
    np.testing.assert_allclose(np.abs(found), [[0.0], [1.0]], atol=1e-12)
