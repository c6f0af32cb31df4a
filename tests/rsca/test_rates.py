"""The metric and the doppelganger rates, against a straight-from-the-paper version that shares no code."""

import math

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from chemscale.errors import DataError, InputError
from chemscale.rsca.baselines import Scaled
from chemscale.rsca.doppelganger import doppelganger_rates
from chemscale.rsca.metric import RSCA


def make(seed=0, n_field=1500, k=6, sizes=(9, 4, 12, 2, 7, 5), mix=True):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(k, k)) if mix else np.eye(k)
    within = np.r_[0.05, 0.3, np.ones(k - 2)]
    field = rng.normal(size=(n_field, k)) @ a + 3.0
    names, members = [], []
    for i, n in enumerate(sizes):
        centre = rng.normal(size=k) * np.sqrt(1 - np.minimum(within**2, 0.99))
        members.append((centre + within * rng.normal(size=(n, k))) @ a + 3.0)
        names += [f"Cluster {i}"] * n
    members = np.concatenate(members)
    cov = {
        "field_velocity": rng.normal(0, 12, n_field),
        "member_velocity": rng.normal(0, 4, len(members)),
        "field_extinction": rng.gamma(2, 0.05, n_field),
        "member_extinction": rng.gamma(2, 0.04, len(members)),
    }
    return field, members, np.array(names), cov


# ---------------------------------------------------------------- the paper, read aloud, in plain loops
def paper_features(field, members, clusters, train, method):
    """Steps 2-4 for all stars, the cluster-dependent ones learned from `train`."""
    if method == "raw":
        return field, members
    if method == "scaled":
        pop = field.std(axis=0, ddof=1)
        z_field, z_members = field, members
    else:
        mu = np.mean(field, axis=0)
        cov = sum(np.outer(z - mu, z - mu) for z in field) / (len(field) - 1)
        lam, vec = np.linalg.eig(cov)
        z_field = np.array(
            [[np.dot(vec[:, i].real, z - mu) / math.sqrt(lam[i].real) for i in range(len(lam))] for z in field]
        )
        z_members = np.array(
            [[np.dot(vec[:, i].real, z - mu) / math.sqrt(lam[i].real) for i in range(len(lam))] for z in members]
        )
        centred = []
        for name in sorted(set(clusters[train])):
            block = z_members[train & (clusters == name)]
            centred += [z - block.mean(axis=0) for z in block]
        _, _, vt = np.linalg.svd(np.array(centred), full_matrices=False)
        z_field, z_members = z_field @ vt.T, z_members @ vt.T
        pop = np.ones(z_field.shape[1])
    out_field, out_members, scales = [], [], []
    for i in range(z_field.shape[1]):
        top = bottom = 0.0
        for name in set(clusters[train]):
            values = z_members[train & (clusters == name), i]
            mad = stats.median_abs_deviation(values, scale="normal")
            top += (len(values) - 1) * mad**2
            bottom += len(values) - 1
        clust = math.sqrt(top / bottom)
        sigma_r = clust * pop[i] / math.sqrt(pop[i] ** 2 - clust**2) if clust < pop[i] else math.inf
        scales.append(1 / sigma_r)
        out_field.append(z_field[:, i] / sigma_r)
        out_members.append(z_members[:, i] / sigma_r)
    order = np.argsort(-np.array(scales) * pop, kind="stable")
    return np.array(out_field).T[:, order], np.array(out_members).T[:, order]


def paper_rates(field, members, clusters, cov, method="rsca", n_features=None, leave_one_out=True):
    rates, weights = {}, {}
    for name in sorted(set(clusters)):
        train = clusters != name if leave_one_out else np.ones(len(clusters), bool)
        f, m = paper_features(field, members, clusters, train, method)
        f, m = f[:, :n_features], m[:, :n_features]
        mine = np.flatnonzero(clusters == name)
        siblings = [np.linalg.norm(m[a] - m[b]) for i, a in enumerate(mine) for b in mine[:i]]
        median = np.median(siblings)
        close = total = 0
        for a in mine:
            ok = np.ones(len(f), bool)
            if cov:
                ok &= np.abs(cov["field_velocity"] - cov["member_velocity"][a]) < 5
                ok &= np.abs(cov["field_extinction"] - cov["member_extinction"][a]) < 0.05
            d = np.linalg.norm(f[ok] - m[a], axis=1)
            close, total = close + np.sum(d <= median), total + ok.sum()
        rates[name], weights[name] = close / total, len(mine)
    overall = sum(rates[c] * weights[c] for c in rates) / sum(weights.values())
    return overall, rates


@pytest.mark.parametrize("loo", [True, False])
@pytest.mark.parametrize("method", ["rsca", "scaled", "raw"])
@pytest.mark.parametrize("n_features", [None, 2])
def test_rates_are_the_papers(method, loo, n_features):
    field, members, clusters, cov = make(1)
    ours = doppelganger_rates(field, members, clusters, method=method, n_features=n_features, leave_one_out=loo, **cov)
    overall, rates = paper_rates(field, members, clusters, cov, method, n_features, loo)
    assert ours.per_cluster == pytest.approx(rates, abs=1e-12)
    assert ours.overall == pytest.approx(overall, abs=1e-12)


def test_no_covariates_means_no_cut():
    field, members, clusters, _ = make(2, n_field=400)
    ours = doppelganger_rates(field, members, clusters)
    assert ours.per_cluster == pytest.approx(paper_rates(field, members, clusters, None)[1], abs=1e-12)
    assert ours.n_pairs["Cluster 0"] == 400 * 9


@pytest.mark.parametrize("cuts", [True, False])
def test_dask_and_blocks_agree_with_numpy(cuts, monkeypatch):
    field, members, clusters, cov = make(3)
    cov = cov if cuts else {}
    want = doppelganger_rates(field, members, clusters, **cov)
    monkeypatch.setattr("chemscale.rsca.pairs.BLOCK_ROWS", 97)
    for chunks in [(1500, 6), (333, 6), (100, 4)]:
        got = doppelganger_rates(da.from_array(field, chunks=chunks), members, clusters, **cov)
        assert got.per_cluster == pytest.approx(want.per_cluster, abs=1e-9)
    assert doppelganger_rates(field, members, clusters, **cov).n_pairs == want.n_pairs


def test_metric_recovers_the_planted_directions():
    field, members, clusters, _ = make(4, n_field=20000, sizes=(30,) * 20)
    metric = RSCA().fit(field, members, clusters)
    assert np.all(np.diff(metric.scale_) <= 0)
    assert metric.sigma_clust_[0] == pytest.approx(0.05, rel=0.15)
    assert metric.sigma_clust_[1] == pytest.approx(0.3, rel=0.15)
    np.testing.assert_allclose(metric.rotation_.T @ metric.rotation_, np.eye(6), atol=1e-10)
    sphered = (field - metric.mean_) @ metric.sphering_
    np.testing.assert_allclose(np.cov(sphered.T), np.eye(6), atol=1e-8)
    full = metric.transform(members)
    np.testing.assert_allclose(metric.transform(members, n_features=2), full[:, :2])
    lazy = metric.transform(da.from_array(members, chunks=(50, 6)))
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), full)


def test_dimension_without_information_gets_scale_zero():
    field, members, clusters, _ = make(5, sizes=(30,) * 8)
    members = members.copy()
    spread = np.random.default_rng(0).normal(size=members.shape) * 5
    metric = RSCA().fit(field, members + spread, clusters)
    assert np.all(metric.scale_[metric.sigma_clust_ >= 1] == 0)
    assert np.sum(metric.sigma_clust_ >= 1) > 0
    assert np.all(metric.transform(field)[:, metric.scale_ == 0] == 0)


def test_probability_ratio_is_the_ratio_of_the_densities():
    field, members, clusters, _ = make(6, sizes=(30,) * 8, mix=False)
    metric = RSCA().fit(field, members, clusters)
    keep = int(np.sum(metric.scale_ > 0))
    delta = np.array([0.02, 0.1, 0.3, 0.2, 0.1, 0.4])[:keep]
    clust, n = metric.sigma_clust_[:keep], stats.norm
    want = np.prod(n.pdf(delta, 0, math.sqrt(2) * clust) / n.pdf(delta, 0, math.sqrt(2)))
    distance = np.linalg.norm(delta * metric.scale_[:keep])
    assert metric.probability_ratio(distance, n_features=keep) == pytest.approx(want)
    printed = np.prod(1 / clust) * math.exp(-0.5 * distance**2)
    assert metric.probability_ratio(distance, n_features=keep, calibrated=False) == pytest.approx(printed)
    assert metric.probability_ratio(distance, n_features=keep, log=True) == pytest.approx(math.log(want))


def test_missing_covariates_do_not_pass_a_cut():
    field, members, clusters, cov = make(7)
    cov["field_velocity"][:700] = np.nan
    cov["member_extinction"][clusters == "Cluster 3"] = np.nan
    with pytest.warns(UserWarning, match="Cluster 3"):
        rates = doppelganger_rates(field, members, clusters, **cov)
    assert math.isnan(rates.per_cluster["Cluster 3"])
    trimmed = {k: v[700:] if k.startswith("field") else v for k, v in cov.items()}
    with pytest.warns(UserWarning):
        again = doppelganger_rates(field[700:], members, clusters, method="raw", **trimmed)
    with pytest.warns(UserWarning):
        raw = doppelganger_rates(field, members, clusters, method="raw", **cov)
    assert raw.n_pairs == again.n_pairs
    assert raw.overall == pytest.approx(again.overall, abs=1e-12)
    cov["field_velocity"][:] = np.nan
    with pytest.raises(DataError, match="passes the extinction"):
        doppelganger_rates(field, members, clusters, **cov)


def test_pairs_at_the_median_count_and_strict_cuts():
    # one dimension, values exact in binary: members 0 and 1 (median 1), field at 1, 2, 2.5 -> pairs <= 1: 1-0, 1-1, 2-1
    field = np.array([[1.0], [2.0], [2.5]])
    members, clusters = np.array([[0.0], [1.0], [0.0], [3.0]]), ["a", "a", "b", "b"]
    rates = doppelganger_rates(field, members, clusters, method="raw")
    assert rates.per_cluster["a"] == pytest.approx(3 / 6)
    assert rates.per_cluster["b"] == pytest.approx(6 / 6)
    rates = doppelganger_rates(
        field, members, clusters, method="raw", field_velocity=[5.0, 0, 0], member_velocity=np.zeros(4)
    )
    assert rates.n_pairs["a"] == 4


@given(st.integers(0, 10_000), st.floats(0.1, 50), st.floats(-20, 20))
@settings(max_examples=15, deadline=None)
def test_rates_do_not_depend_on_units_order_or_names(seed, factor, shift):
    field, members, clusters, _ = make(seed, n_field=200, k=3, sizes=(4, 5, 6))
    want = doppelganger_rates(field, members, clusters)
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.normal(size=(3, 3)))[0] * factor
    order, rows = rng.permutation(len(members)), rng.permutation(len(field))
    got = doppelganger_rates(field[rows] @ mix + shift, (members @ mix + shift)[order], clusters[order])
    assert got.overall == pytest.approx(want.overall, abs=2 / 200)


def test_bad_input_is_named():
    field, members, clusters, cov = make(8)
    with pytest.raises(DataError, match="no field stars"):
        doppelganger_rates(field[:0], members, clusters)
    with pytest.raises(DataError, match="single member: Cluster 3"):
        keep = np.arange(len(members)) != np.flatnonzero(clusters == "Cluster 3")[0]
        RSCA().fit(field, members[keep], clusters[keep])
    with pytest.raises(DataError, match="no cluster members"):
        RSCA().fit(field, members[:0], clusters[:0])
    with pytest.raises(DataError, match="degrees of freedom"):
        RSCA().fit(field, members[:4], ["a", "a", "b", "b"])
    with pytest.raises(DataError, match="field stars for 6 components"):
        RSCA().fit(field[:5], members, clusters)
    with pytest.raises(DataError, match="singular"):
        RSCA().fit(np.c_[field, field[:, 0]], np.c_[members, members[:, 0]], clusters)
    with pytest.raises(DataError, match="two clusters"):
        one = clusters == "Cluster 2"
        doppelganger_rates(field, members[one], clusters[one])
    with pytest.raises(DataError, match="not finite"):
        RSCA().fit(np.where(np.arange(len(field))[:, None] == 7, np.nan, field), members, clusters)
    with pytest.raises(InputError, match="components"):
        doppelganger_rates(field, members[:, :4], clusters)
    with pytest.raises(InputError, match="no cluster name"):
        RSCA().fit(field, members, ["", *clusters[1:]])
    with pytest.raises(InputError, match="field_velocity"):
        doppelganger_rates(field, members, clusters, field_velocity=cov["field_velocity"])
    with pytest.raises(InputError, match="unknown metric"):
        doppelganger_rates(field, members, clusters, method="nonsense")
    with pytest.raises(InputError, match="n_features is 9"):
        doppelganger_rates(field, members, clusters, n_features=9)


def test_scaled_keeps_the_most_telling_coordinate_first():
    field, members, clusters, _ = make(9, sizes=(20,) * 6, mix=False)
    metric = Scaled().fit(field, members, clusters)
    assert metric.order_[0] == 0
    assert metric.matrix(1)[0, 0] > 0


def test_linear_map_predicts_features_of_complete_spectra():
    from chemscale.statistics.ppca import MaskedPPCA

    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(40, 3)))[0].T * np.array([[3.0], [2.0], [1.0]])
    flux = 1 + rng.normal(size=(600, 3)) @ axes + 0.05 * rng.normal(size=(600, 40))
    basis = MaskedPPCA(3).fit(flux)
    z = basis.transform(flux)
    clusters = np.repeat([f"c{i}" for i in range(10)], 6)
    metric = RSCA().fit(z, z[:10].repeat(6, axis=0) + rng.normal(size=(60, 3)) * 0.2, clusters)
    a = metric.linear_map(basis, 2)
    assert a.shape == (2, 40)
    want = metric.transform(z, 2)
    got = (flux - basis.mean_) @ a.T
    np.testing.assert_allclose(got - got[0], want - want[0], atol=1e-8)
