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

#: Checks that ask for what this estimator does otherwise on purpose, with the reason.
OTHERWISE = {
    name: reason
    for reason, names in {
        "the second argument of fit is a mask, not a target": (
            "check_transformer_general check_transformer_data_not_an_array check_fit_score_takes_y "
            "check_dict_unchanged check_dont_overwrite_attributes check_fit2d_1sample check_fit2d_1feature "
            "check_fit2d_predict1d check_methods_subset_invariance check_methods_sample_order_invariance "
            "check_fit_idempotent check_estimators_dtypes check_estimators_fit_returns_self check_pipeline_consistency "
            "check_estimators_overwrite_params check_estimators_pickle check_f_contiguous_array_estimator "
            "check_readonly_memmap_input check_n_features_in check_fit1d check_n_features_in_after_fitting "
            "check_parameters_default_constructible check_positive_only_tag_during_fit check_estimator_sparse_tag "
            "check_fit_check_is_fitted check_mixin_order check_do_not_raise_errors_in_init_or_set_param"
        ),
        "NaN and infinity are missing pixels, not errors": "check_estimators_nan_inf",
        "objects, complex numbers, sparse matrices and empty data end in an error of this package": (
            "check_dtype_object check_complex_data check_estimator_sparse_array check_estimator_sparse_matrix "
            "check_estimators_empty_data_messages check_estimators_unfitted check_fit_non_negative"
        ),
    }.items()
    for name in names.split()
}


def _checks():
    for estimator, check in estimator_checks_generator(MaskedPPCA(1, max_iter=5)):
        name = getattr(check, "func", check).__name__
        if name not in OTHERWISE:
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
