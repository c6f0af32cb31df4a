"""Strangers among cluster members: they are found, hardly count, and members do."""

import numpy as np
import pytest

from chemscale.rsca.auto import choose_metric
from chemscale.rsca.auto_run import doubtful_clusters, doubtful_members
from chemscale.rsca.belonging import SLACK, robust_scatter
from chemscale.rsca.contrastive import refine
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.likeness import Likeness, held_out_pairs, sample_pairs
from chemscale.rsca.pair_model import PairDistances
from chemscale.rsca.representation import Representation
from chemscale.rsca.stars import RunStars

K, WITHIN = 12, np.r_[np.full(4, 0.1), np.full(8, 0.8)]


def clusters_of(seed, sizes, share):
    """Members (n, 12) with unit spread between clusters in 4 dimensions; a share of them is of the field."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=(len(sizes), K))[number] * np.sqrt(1 - WITHIN**2) + WITHIN * rng.normal(size=(len(number), K))
    stranger = rng.random(len(number)) < share
    x[stranger] = rng.normal(size=(stranger.sum(), K))
    return x, number, stranger


def found(x, number, prior=None):
    prior = np.diag((1.5 * WITHIN) ** 2) if prior is None else prior
    return robust_scatter(x, number, np.ones(len(x)), np.eye(K), prior)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_strangers_hardly_count_and_the_scatter_is_that_of_members(seed):
    x, number, stranger = clusters_of(seed, [20, 12, 8, 8, 6, 6, 5, 5, 4, 4], 0.15)
    within, belonging = found(x, number)
    assert belonging[stranger].mean() < 0.2 and belonging[~stranger].mean() > 0.95
    assert np.sqrt(np.diag(within)[:4]).max() < 1.4 * 0.1
    plain, every = robust_scatter(x, number, np.ones(len(x)), np.eye(K), None)
    assert np.sqrt(np.diag(plain)[:4]).max() > 2.5 * 0.1  # what they do to a metric that believes the list
    np.testing.assert_array_equal(every, 1.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_strangers_are_told_where_three_in_ten_are_and_not_where_half_are(seed):
    """The scale of distances is a median over members: half of them set it."""
    for share, told in ((0.3, True), (0.5, False)):
        x, number, stranger = clusters_of(seed, [20, 12, 8, 8, 6, 6, 5, 5, 4, 4], share)
        belonging = found(x, number)[1]
        assert (belonging[stranger].mean() < 0.1) == told and belonging[~stranger].mean() > 0.95


def test_without_strangers_every_member_counts():
    x, number, _ = clusters_of(3, [20, 12, 8, 8, 6, 6, 5, 5, 4, 4, 2, 2, 2], 0.0)
    within, belonging = found(x, number)
    plain = robust_scatter(x, number, np.ones(len(x)), np.eye(K), None)[0]
    assert np.mean(belonging) > 0.99
    np.testing.assert_allclose(np.diag(within), np.diag(plain), rtol=0.15)


def test_members_belong_where_the_prior_is_far_too_small():
    """Without labels it is the noise of coordinates, less than siblings of other temperatures differ by."""
    x, number, _ = clusters_of(3, [20, 12, 8, 8, 6, 6, 5, 5, 4, 4], 0.0)
    assert found(x, number, np.diag((0.1 * WITHIN) ** 2))[1].mean() > 0.95


@pytest.mark.parametrize("seed", range(4))
def test_the_outermost_members_of_a_clean_list_count_in_full_and_a_single_stranger_does_not(seed):
    """Of a hundred members one lies beyond the limit by chance; a stranger lies where no member does."""
    x, number, _ = clusters_of(20 + seed, [30, 20, 14, 12, 10, 8, 4, 2], 0.0)
    x[0] += 4.2 * WITHIN * np.r_[np.ones(2), np.zeros(K - 2)]
    within, belonging = found(x, number)
    np.testing.assert_array_equal(belonging, 1.0)
    np.testing.assert_array_equal(within, robust_scatter(x, number, np.ones(len(x)), np.eye(K), None)[0])
    x[0, :4] += 1.2
    belonging = found(x, number)[1]
    assert belonging[0] < 0.1 and belonging[1:].mean() > 0.98


def test_of_two_that_differ_neither_counts():
    x, number, _ = clusters_of(4, [10] * 6 + [2], 0.0)
    x[-1] = x[-2] + 3.0
    belonging = found(x, number)[1]
    assert belonging[-2:].max() < 0.1 and belonging[:-2].mean() > 0.99


def test_a_cluster_left_out_says_nothing_of_the_others():
    x, number, _ = clusters_of(5, [10] * 6, 0.1)
    field = np.random.default_rng(0).normal(size=(500, K))
    other = np.where((number == 2)[:, None], 5.0 * x, x)
    noise = {"noise": np.diag(WITHIN**2)}
    forms = [Representation(Evaluation(field, v, number.astype(str)), noise, slack=SLACK) for v in (x, other)]
    np.testing.assert_allclose(forms[0].within((2,)), forms[1].within((2,)))
    np.testing.assert_allclose(forms[0].belonging((2,)), forms[1].belonging((2,)))
    assert np.all(forms[0].belonging((2,))[number == 2] == 0)
    assert not np.allclose(forms[0].within(), forms[1].within())


def test_contrast_does_not_learn_from_stars_that_do_not_belong():
    x, number, stranger = clusters_of(6, [10] * 8, 0.15)
    field = np.random.default_rng(1).normal(size=(800, K)) / WITHIN
    x = x / WITHIN
    belonging = np.where(stranger, 0.0, 1.0)
    moved = np.where(stranger[:, None], x + 4.0, x)
    maps = [refine(field, v, number.astype(str), belonging) for v in (x, moved)]
    assert [np.linalg.norm(m) for m in maps] == pytest.approx([np.linalg.norm(maps[0])] * 2, rel=1e-3)
    believed = [refine(field, v, number.astype(str)) for v in (x, moved)]
    assert np.linalg.norm(believed[0]) != pytest.approx(np.linalg.norm(believed[1]), rel=1e-3)


@pytest.mark.parametrize("seed", [7, 8])
def test_true_members_are_told_apart_better_when_strangers_hardly_count(seed):
    """Rates of true members, judged by the truth, under maps that 15 % of strangers took part in."""
    x, number, stranger = clusters_of(seed, [14, 12, 10, 10, 8, 8, 8, 6, 6, 6], 0.15)
    field, names = np.random.default_rng(2).normal(size=(1500, K)), np.array([f"c{i}" for i in number])
    engine, of_members = Evaluation(field, x, names), Evaluation(field, x[~stranger], names[~stranger])
    rates = []
    for targets in ({"noise": np.diag((0.3 * WITHIN) ** 2)}, {}):  # without a target every listed member is believed
        form = Representation(engine, targets, slack=SLACK)
        maps = {name: form.full_metric(K, 0.0, "none", left_out=(j,)) for j, name in enumerate(engine.names)}
        rates.append(of_members.rates(matrices=maps).overall)
    assert rates[0] < 0.7 * rates[1]


def test_the_search_says_who_belongs():
    x, number, stranger = clusters_of(9, [14, 12, 10, 10, 8, 8], 0.15)
    engine = Evaluation(np.random.default_rng(2).normal(size=(1000, K)), x, number.astype(str))
    result = choose_metric({"plain": Representation(engine, {"noise": np.diag(WITHIN**2)}, slack=SLACK)}, ks=[8])
    assert result.belonging[stranger].mean() < 0.3 < 0.9 < result.belonging[~stranger].mean()
    assert set(result.maps) == set(engine.names)
    assert {c: n for c, (n, _) in result.belonging_of.items()} == dict(zip(map(str, range(6)), [14, 12, 10, 10, 8, 8]))
    assert sum(b for _, b in result.belonging_of.values()) == pytest.approx(result.belonging.sum())


def test_doubtful_members_are_named():
    import xarray as xr

    ds = xr.Dataset({"star_id": ("star", np.array([f"S{i}" for i in range(6)], dtype=object))})
    stars = RunStars(ds, np.arange(2), np.arange(2, 6), np.zeros((2, 3)), np.zeros((4, 3)), np.array(list("aabb")))
    told = doubtful_members(stars, np.array([1.0, 0.2, 0.04, 0.7]))
    assert told == [
        {"star_id": "S4", "cluster": "b", "belonging": 0.04},
        {"star_id": "S3", "cluster": "a", "belonging": 0.2},
    ]


@pytest.mark.parametrize("seed", [10, 11])
def test_pairs_with_a_stranger_do_not_flatten_the_likeness(seed):
    """A list with 15 % of strangers: the likeness of siblings is that of the members that belong."""
    rng = np.random.default_rng(seed)
    sizes = [14, 12, 10, 10, 8, 8, 8, 6, 6, 6, 6, 5]
    number = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=(len(sizes), 4))[number] + 0.3 * rng.normal(size=(len(number), 4))
    stranger = rng.random(len(number)) < 0.15
    x[stranger] = 1.04 * rng.normal(size=(stranger.sum(), 4))
    field, groups = 1.04 * rng.normal(size=(1500, 4)), [np.flatnonzero(number == j) for j in range(len(sizes))]
    pairs = [sample_pairs(field, x[g], None, 2000, rng) for g in groups]
    listed, known = (PairDistances.believing(pairs, [b[g] for g in groups]) for b in (np.ones(len(x)), 1.0 - stranger))
    np.testing.assert_allclose(known.freedom, [max((~stranger[g]).sum() - 1, 0) for g in groups])
    fits = [Likeness.fit(p, 4) for p in (listed, known)]
    assert fits[0].correction.slope == pytest.approx(fits[0].listed_slope)
    assert 0.7 < fits[1].correction.slope < 1.3
    assert fits[1].listed_slope < 0.5  # what a list with strangers says of the same chances
    assert fits[1].log_ratio(10.0) < fits[0].log_ratio(10.0) - 2  # no sibling is that far away
    assert Likeness.from_json(fits[1].to_json()).listed_slope == fits[1].listed_slope


def test_clusters_of_which_few_members_belong_are_warned_of():
    x, number, _ = clusters_of(9, [14, 12, 10, 10, 8, 8, 2], 0.0)
    x[-1] = x[-2] + 3.0
    engine = Evaluation(np.random.default_rng(2).normal(size=(1000, K)), x, number.astype(str))
    result = choose_metric({"plain": Representation(engine, {"noise": np.diag(WITHIN**2)}, slack=SLACK)}, ks=[8])
    assert doubtful_clusters(result).startswith(
        "less than two thirds of the listed members look like siblings in 6 (0."
    )
    del result.belonging_of["6"]
    assert doubtful_clusters(result) == ""


def test_the_likeness_of_the_papers_metric_leaves_out_pairs_of_stars_that_do_not_belong():
    x, number, stranger = clusters_of(12, [14, 12, 10, 10, 8, 8, 8, 6], 0.15)
    engine = Evaluation(np.random.default_rng(2).normal(size=(1000, K)), x, number.astype(str))
    listed = held_out_pairs(engine, n_features=4, max_field=500)
    known = held_out_pairs(engine, n_features=4, max_field=500, belonging=1.0 - stranger)
    np.testing.assert_array_equal(known.siblings, listed.siblings)
    assert listed.by_cluster.freedom.sum() == pytest.approx(len(x) - 8)
    assert known.by_cluster.freedom.sum() == pytest.approx((~stranger).sum() - 8)
    assert known.by_cluster.weights()[1].sum() == pytest.approx((~stranger).sum() - 8)
    slopes = [Likeness.fit(p.by_cluster, 4).correction.slope for p in (listed, known)]
    assert slopes[1] > slopes[0] + 0.1


def test_where_siblings_differ_in_what_is_no_chemistry_another_form_judges_who_belongs():
    """Plain coordinates of three members lie far out by their temperature; the detrended form knows better."""
    x, number, stranger = clusters_of(13, [14, 12, 10, 10, 8, 8, 8, 6], 0.1)
    field, names, noise = (
        np.random.default_rng(2).normal(size=(1000, K)),
        number.astype(str),
        {"noise": np.diag(WITHIN**2)},
    )
    hot = np.flatnonzero(~stranger)[[3, 20, 40]]
    moved = x.copy()
    moved[hot, 0] += 2.0
    detrended = Representation(Evaluation(field, x, names), noise, slack=SLACK)
    alone = Representation(Evaluation(field, moved, names), noise, slack=SLACK)
    judged = Representation(Evaluation(field, moved, names), noise, slack=SLACK, judge=detrended)
    assert alone.belonging()[hot].max() < 0.2 < 0.9 < judged.belonging()[hot].min()
    np.testing.assert_array_equal(judged.belonging((2,)), detrended.belonging((2,)))
    assert judged.belonging()[stranger].mean() < 0.3
    thinned = judged.with_field_of(judged.evaluation.thinned(500))
    np.testing.assert_array_equal(thinned.belonging(), detrended.belonging())
    assert judged.within()[0, 0] > 2 * alone.within()[0, 0]  # what members differ by counts
