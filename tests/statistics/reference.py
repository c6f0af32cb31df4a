"""Slow, direct implementations to compare with; they share no code with chemscale."""

from __future__ import annotations

import numpy as np


def toy(n, p, k, *, noise=0.1, missing=0.1, low=0.3, high=3.0, seed=0, dtype=float):
    """Linear-Gaussian spectra around 1, with a random mask."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(p, k)))[0]
    flux = 1 + (rng.normal(size=(n, k)) * np.linspace(high, low, k)) @ axes.T + noise * rng.normal(size=(n, p))
    return flux.astype(dtype), rng.random((n, p)) < missing


def closed_form(flux, k):
    """Tipping & Bishop (1999), equations 7 and 8, on complete data."""
    mean = flux.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(flux.T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    return mean, vectors[:, :k].T, values[:k], values[k:].mean()


def loglike(flux, missing, mean, covariance):
    """Observed-data log-likelihood from dense Gaussians, star by star."""
    total = 0.0
    for x, gone in zip(flux, missing):
        seen = ~gone
        if not seen.any():
            continue
        d = x[seen] - mean[seen]
        c = covariance[np.ix_(seen, seen)]
        total -= 0.5 * (seen.sum() * np.log(2 * np.pi) + np.linalg.slogdet(c)[1] + d @ np.linalg.solve(c, d))
    return total


def dense_em(flux, missing, k, steps, noise_variance=None):
    """Textbook EM: loadings (with the mean as a last column) and noise from every star's own system.

    `noise_variance` (n, p), where given, is the known variance of every value, and not fitted.
    """
    n = len(flux)
    seen = (~missing).astype(float)
    x = np.where(missing, 0.0, flux)
    mean = x.sum(0) / seen.sum(0)
    _, s, vt = np.linalg.svd(seen * (x - mean), full_matrices=False)
    loadings = vt[:k].T * s[:k] / np.sqrt(n)
    s2 = 0.1 * np.var(x[~missing])
    for _ in range(steps):
        weight = seen / (s2 if noise_variance is None else noise_variance)
        system = np.eye(k) + np.einsum("np,pi,pj->nij", weight, loadings, loadings, optimize=True)
        cov = np.linalg.inv(system)
        z = np.einsum("nij,np,pj->ni", cov, weight * (x - mean), loadings, optimize=True)
        z1 = np.concatenate([z, np.ones((n, 1))], axis=1)
        second = np.einsum("ni,nj->nij", z1, z1)
        second[:, :k, :k] += cov
        left = np.einsum("np,nij->pij", weight, second, optimize=True)
        right = (weight * x).T @ z1
        rows = np.linalg.solve(left, right[:, :, None])[:, :, 0]
        loadings, mean = rows[:, :k], rows[:, k]
        if noise_variance is None:
            fit = seen * (x - mean - z @ loadings.T)
            spread = np.einsum("np,pi,nij,pj->", seen, loadings, cov, loadings, optimize=True)
            s2 = ((fit**2).sum() + spread) / seen.sum()
    return loadings, mean, s2


def largest_angle(axes, loadings):
    """Sine of the largest principal angle between orthonormal rows `axes` and the columns of `loadings`."""
    u = np.linalg.svd(loadings, full_matrices=False)[0]
    return np.linalg.norm(u - axes.T @ (axes @ u), 2)
