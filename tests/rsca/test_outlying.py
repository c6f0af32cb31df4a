"""Stars far outside the field: failed spectra are brought in along what is nuisance, and no others."""

import numpy as np
import pytest

from chemscale.rsca.auto import AutoMetric
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.outlying import FieldEdge
from chemscale.rsca.representation import Candidate, Representation

NUISANCE = np.diag([0.1] * 5 + [1.0] * 5) ** 2


def test_stars_among_the_field_stay_as_they_are():
    field = np.random.default_rng(0).normal(size=(5000, 10)) * np.geomspace(1, 100, 10)
    edge = FieldEdge.fit(field, np.eye(10))
    assert edge.bring_in(field) is field
    few = np.concatenate([field, 1000 * field[:50]])  # these neither move the edge nor the others
    with_few = FieldEdge.fit(few, np.eye(10))
    assert with_few.edge == pytest.approx(edge.edge, rel=0.05)
    moved = with_few.bring_in(few)
    np.testing.assert_array_equal(moved[:5000], field)
    assert not with_few.outside(moved).any()


def test_what_a_star_tells_along_little_nuisance_is_kept():
    rng = np.random.default_rng(0)
    edge = FieldEdge.fit(rng.normal(size=(5000, 10)), NUISANCE)
    failed, metal_poor = np.zeros((2, 10))
    failed[[0, 6, 8]] = 3, -30, 40
    metal_poor[0] = 8
    moved = edge.bring_in(np.array([failed, metal_poor]))
    assert moved[0, 0] > 2 and np.abs(moved[0, 5:]).max() < 2  # the coordinate that tells, and those that failed
    np.testing.assert_array_equal(moved[1], metal_poor)


def test_a_failed_spectrum_is_still_nearer_its_siblings_than_most_stars():
    rng = np.random.default_rng(0)
    field = rng.normal(size=(2000, 10))
    clusters = np.repeat([f"c{i:02d}" for i in range(12)], 3)
    members = rng.normal(size=(12, 10)).repeat(3, axis=0) + rng.normal(size=(36, 10)) @ np.sqrt(NUISANCE)
    members[0] += np.array([0, 1, 0, 0, 0, 0, -15, 0, 20, 0])
    rates = {}
    for name, edge in (("as they are", None), ("brought in", FieldEdge.fit(field, NUISANCE))):
        engine = Evaluation(field, members if edge is None else edge.bring_in(members), clusters)
        form = Representation(engine, {"noise": 0.1**2 * np.eye(10)})
        maps = {c: form.metric(Candidate("plain", 10, 0.3, "noise", 8), (j,)) for j, c in enumerate(engine.names)}
        rates[name] = engine.rates(matrices=maps).per_cluster["c00"]
    assert rates["brought in"] < 0.3 * rates["as they are"]


def test_a_stored_metric_brings_stars_in_as_the_fitted_one():
    rng = np.random.default_rng(0)
    edge = FieldEdge.fit(rng.normal(size=(500, 3)), np.diag([0.1, 1, 2]))
    metric = AutoMetric(("plain",), 3, np.zeros((1, 3)), rng.normal(size=(3, 2)), edge=edge)
    coords = np.array([[0.5, -0.5, 1.0], [4.0, -30.0, 0.0], [np.nan] * 3])
    out = metric.features(coords, {})
    np.testing.assert_array_equal(out[0], metric.features(coords[:1], {})[0])
    np.testing.assert_allclose(out[:2], AutoMetric.from_dataset(metric.to_dataset()).features(coords, {})[:2])
    old = metric.to_dataset().drop_vars(["field_edge", "field_axes", "field_centre", "field_nuisance"])
    assert AutoMetric.from_dataset(old).features(coords, {})[1] != pytest.approx(out[1])
    assert np.isnan(out[2]).all()
