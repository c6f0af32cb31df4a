"""MaskedPPCA keeps scikit-learn's contract where its checks make sense."""

from __future__ import annotations

import numpy as np
import pytest
from reference import toy
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator

from chemscale.errors import InputError
from chemscale.statistics.ppca import MaskedPPCA


class Targeted(MaskedPPCA):
    """With scikit-learn's second argument of `fit`, a target, which is ignored; the estimator's own is a mask."""

    def __init__(self, n_components=1, max_iter=5):
        super().__init__(n_components, max_iter=max_iter)

    def fit(self, X, y=None):
        return super().fit(X)

    def score(self, X, y=None):
        return super().score(X)


#: Checks that ask for what this estimator does otherwise on purpose, by the reason.
OTHERWISE = {
    "NaN and infinity are missing pixels": {"check_estimators_nan_inf"},
    "errors are this package's own, with a remedy, not ValueError": {
        "check_n_features_in_after_fitting",
        "check_transformer_general",
        "check_estimators_empty_data_messages",
        "check_complex_data",
        "check_fit1d",
        "check_fit2d_predict1d",
        "check_fit2d_1sample",
        "check_fit2d_1feature",
        "check_estimator_sparse_tag",
        "check_estimator_sparse_array",
        "check_estimator_sparse_matrix",
    },
    "passes are counted in n_passes_": {"check_transformer_n_iter"},
}


def _checks():
    left_out = set().union(*OTHERWISE.values())
    for estimator, check in estimator_checks_generator(Targeted()):
        name = getattr(check, "func", check).__name__
        if name not in left_out:
            yield pytest.param(estimator, check, id=name)


@pytest.mark.parametrize(("estimator", "check"), _checks())
def test_scikit_learn_agrees(estimator, check):
    check(estimator)


def test_parameters_survive_clone_and_are_checked_in_fit_only():
    one = MaskedPPCA(3, noise="per-pixel", outlier_sigmas=5.0, start="incremental")
    assert clone(one).get_params() == one.get_params()
    wrong = MaskedPPCA(3, outlier_sigmas=1.0)
    with pytest.raises(InputError, match="outlier_sigmas"):
        wrong.fit(np.ones((10, 5)))


def test_a_pipeline_fits_and_transforms():
    flux, _ = toy(120, 20, 3)
    pipeline = make_pipeline(FunctionTransformer(lambda x: x - 1), MaskedPPCA(3))
    coords = pipeline.fit_transform(flux)
    assert coords.shape == (120, 3)
    np.testing.assert_allclose(pipeline[-1].inverse_transform(coords), flux - 1, atol=0.5)


def test_score_is_the_mean_log_likelihood_of_the_fit():
    flux, gone = toy(150, 25, 3)
    ppca = MaskedPPCA(3).fit(flux, gone)
    assert ppca.score(flux, gone) == pytest.approx(ppca.loglike_[-1] / 150, rel=1e-6)
    assert ppca.score(flux + 1, gone) < ppca.score(flux, gone)


def test_output_carries_names_where_asked_for():
    flux, _ = toy(60, 12, 2)
    frame = MaskedPPCA(2).set_output(transform="pandas").fit_transform(flux)
    assert list(frame.columns) == ["component0", "component1"]
