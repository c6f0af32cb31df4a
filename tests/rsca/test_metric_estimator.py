"""The metrics keep scikit-learn's contract, and what they store is what they were."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from chemscale.errors import DataError, InputError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.metric import RSCA
from chemscale.rsca.registry import METRICS, make, short_titles, titles
from chemscale.rsca.scales import clipped_sigma


def stars(seed=0, n_field=400, k=5, n_clusters=5, size=6):
    rng = np.random.default_rng(seed)
    names = np.repeat([f"c{i}" for i in range(n_clusters)], size)
    members = rng.normal(size=(n_clusters, k)).repeat(size, axis=0) + 0.3 * rng.normal(size=(len(names), k))
    return rng.normal(size=(n_field, k)), members, names


class FieldAndClusters(RSCA):
    """RSCA on the checks' data: their target has no field, so every third star stands for it."""

    def fit(self, X, y=None, clusters=None):
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        y = np.asarray(y)
        names = np.where(np.arange(len(y)) % 3 == 0, "", y.astype(str))
        return super().fit(X, names)


#: Checks of scikit-learn that cannot hold, and why.
EXCEPTIONS = {
    "check_estimators_nan_inf": "errors are chemscale's (what, where, remedy), not ValueError",
    "check_n_features_in_after_fitting": "errors are chemscale's, not ValueError",
    "check_fit1d": "errors are chemscale's, not ValueError",
    "check_transformer_general": "its last step expects ValueError; check_transformer_data_not_an_array has the others",
    "check_fit2d_predict1d": "errors are chemscale's, not ValueError",
    "check_fit2d_1sample": "errors are chemscale's, not ValueError",
    "check_estimators_empty_data_messages": "errors are chemscale's, not ValueError",
    "check_complex_data": "complex coordinates do not occur: PPCA gives real ones",
    "check_estimator_sparse_array": "coordinates are dense",
    "check_estimator_sparse_matrix": "coordinates are dense",
    "check_supervised_y_2d": "a star is in one cluster at most",
}


@parametrize_with_checks([FieldAndClusters()], expected_failed_checks=lambda _: EXCEPTIONS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", METRICS)
def test_parameters_clone_and_storage(name):
    field, members, clusters = stars()
    metric = make(name).set_params(n_features=2).fit(field, members, clusters)
    assert clone(metric).get_params() == {"n_features": 2}
    assert metric.transform(field).shape == (400, 2)
    assert metric.get_feature_names_out().tolist() == [f"{type(metric).__name__.lower()}{i}" for i in range(2)]
    again = type(metric).from_dataset(metric.to_dataset())
    np.testing.assert_array_equal(again.transform(members), metric.transform(members))
    np.testing.assert_array_equal(again.matrix(4), metric.matrix(4))
    assert metric.set_output(transform="pandas").transform(field).columns.tolist() == list(
        metric.get_feature_names_out()
    )
    with pytest.raises(InputError, match="does not hold"):
        type(metric).from_dataset(xr.Dataset())
    with pytest.raises(NotFittedError, match="call fit first"):
        make(name).transform(field)
    with pytest.raises(InputError, match="5 components"):
        metric.transform(field[:, :3])


def test_a_pipeline_of_basis_and_metric_takes_cluster_names_as_target():
    field, members, clusters = stars(k=8)
    x, y = np.concatenate([field, members]), np.r_[np.full(len(field), ""), clusters]
    pipeline = make_pipeline(PCA(5, random_state=0), RSCA(n_features=3)).fit(x, y)
    z = PCA(5, random_state=0).fit_transform(x)
    want = RSCA().fit(z[:400], z[400:], clusters).transform(z, 3)
    np.testing.assert_allclose(pipeline.transform(x), want, atol=1e-10)
    lazy = RSCA().fit(da.from_array(z, chunks=100), y).transform(z, 3)
    np.testing.assert_allclose(lazy, want, atol=1e-10)


def test_every_metric_has_titles_and_a_rate():
    engine = Evaluation(*stars())
    for name in METRICS:
        assert 0 <= engine.rates(name).overall <= 1
        assert titles()[name] and short_titles()[name]
    with pytest.raises(InputError, match="did you mean 'rsca'"):
        engine.rates("rscaa")


def few_clusters(seed, k=30, n_clusters=20, size=5):
    """Two telling coordinates of thirty, and eighty degrees of freedom."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"c{i}" for i in range(n_clusters)], size)
    members = rng.normal(size=(len(names), k))
    members[:, :2] = rng.normal(size=(n_clusters, 2)).repeat(size, axis=0) + 0.15 * rng.normal(size=(len(names), 2))
    return rng.normal(size=(2000, k)), members, names


def test_scales_of_held_out_clusters_do_not_trust_axes_that_tell_nothing():
    data = few_clusters(0)
    own, held_out = (make(name).fit(*data).sigma_clust_ for name in ("rsca", "rsca_held_out"))
    assert own[2] < 0.5  # a coordinate in which siblings are strangers
    assert held_out[2] > 0.75
    assert 0.15 < held_out[1] < 0.25 and np.all(np.diff(held_out) >= 0)


def test_scales_of_held_out_clusters_give_lower_rates_where_clusters_are_few():
    rates = np.array(
        [
            [Evaluation(*few_clusters(seed)).rates(name).overall for name in ("rsca", "rsca_held_out")]
            for seed in range(4)
        ]
    )
    assert np.all(rates[:, 1] < rates[:, 0]) and rates[:, 1].mean() < 0.75 * rates[:, 0].mean()


def test_measurement_noise_is_part_of_the_scatter_where_it_is_known():
    field, members, names = few_clusters(0, k=90)  # more coordinates than degrees of freedom
    with pytest.raises(DataError, match="degrees of freedom"):
        Evaluation(field, members, names).fit("rsca_held_out")
    engine = Evaluation(field, members, names, noise=np.diag([0.02, 0.02, *np.full(88, 0.9)]))
    assert engine.rates("rsca_held_out").overall < 0.05
    assert engine.thinned(500).moments.noise is engine.moments.noise


def test_strangers_among_the_members_do_not_set_the_spread():
    rng = np.random.default_rng(0)
    x, names = rng.normal(size=(400, 1)), np.repeat(np.arange(40), 10)
    assert clipped_sigma(x, names)[0] == pytest.approx(1.0 * np.sqrt(10 / 9), rel=0.05)
    x[::20] = 15.0
    assert clipped_sigma(x, names)[0] < 1.7 < 3.0 < np.std(x)
