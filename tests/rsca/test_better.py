"""Detrending, committee, likeness and nuisance planes on data whose truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from chemscale.errors import DataError, InputError
from chemscale.rsca.auto import Search, choose_metric
from chemscale.rsca.contrastive import FEATURES, refine
from chemscale.rsca.detrending import LabelDetrending, stored_detrending
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.likeness import Likeness, calibrate, held_out_pairs, sibling_probability
from chemscale.rsca.nuisance import nuisance_plane
from chemscale.rsca.pair_model import PairDistances, PairModel
from chemscale.rsca.representation import (
    Representation,
    SelfDetrended,
    continuum_directions,
    covariate_directions,
    shrunk_metric,
)
from chemscale.rsca.scales import centre_on_clusters
from chemscale.runtime import jsonio


def giants(seed=0, n=3000, n_clusters=10, size=6):
    """Coordinates that depend on temperature, gravity and chemistry, interactions included; metal-poor is hotter."""
    rng = np.random.default_rng(seed)
    chem = np.r_[rng.normal(size=(n, 2)), rng.normal(size=(n_clusters, 2)).repeat(size, axis=0)]
    m = n_clusters * size
    logg = rng.normal(size=n + m)
    teff = 0.8 * logg - 0.6 * chem[:, 0] + 0.3 * rng.normal(size=n + m)
    terms = np.stack([teff, logg, chem[:, 0], chem[:, 1], teff * chem[:, 0], logg * chem[:, 1], teff**2], axis=1)
    weights = rng.normal(size=(7, 8)) * np.array([3, 2, 1.5, 1, 0.5, 0.4, 0.4])[:, None]
    z = terms @ weights + 0.05 * rng.normal(size=(n + m, 8))
    labels = {
        "teff": 4500 + 300 * teff,
        "logg": 2.3 + 0.4 * logg,
        "fe_h": 0.3 * chem[:, 0],
        "alpha_m": 0.1 * chem[:, 1],
    }
    clusters = np.repeat([f"c{i:02d}" for i in range(n_clusters)], size)
    return z, labels, clusters, n


def cut(labels, rows):
    return {k: v[rows] for k, v in labels.items()}


def test_detrending_removes_temperature_but_not_chemistry():
    z, labels, clusters, n = giants()
    detrending = LabelDetrending().fit(z[:n], cut(labels, slice(0, n)))
    moved = detrending.transform(z, labels)
    inside = np.var(centre_on_clusters(z[n:], clusters), axis=0).sum()
    after = np.var(centre_on_clusters(moved[n:], clusters), axis=0).sum()
    assert after < 0.01 * inside
    means = [np.var([v[n:][clusters == c].mean(axis=0) for c in np.unique(clusters)], axis=0).sum() for v in (z, moved)]
    assert means[1] > 0.1 * means[0]
    again = LabelDetrending.from_dict(detrending.to_dict())
    np.testing.assert_array_equal(again.transform(z, labels), moved)


def test_detrending_holds_single_abundances_too():
    z, labels, clusters, n = giants(2)
    hidden = {"teff": labels["teff"], "logg": labels["logg"], "x": labels["fe_h"], "y": labels["alpha_m"]}
    some = [LabelDetrending(linear=names).fit(z[:n], cut(hidden, slice(0, n))) for names in ((), ("x", "y"))]
    inside = [np.var(centre_on_clusters(t.transform(z, hidden)[n:], clusters), axis=0).sum() for t in some]
    assert inside[1] < 0.05 * inside[0]
    assert some[1].names_ == ("teff", "logg", "x", "y")
    assert np.trace(some[1].residual_) < 0.05 * np.trace(some[0].residual_)
    again = LabelDetrending.from_dict(some[1].to_dict())
    np.testing.assert_array_equal(again.transform(z, hidden), some[1].transform(z, hidden))


def test_detrending_of_no_star_is_no_star():
    """A cluster that no field star can be compared with has none."""
    z, labels, _, n = giants(n=1000)
    detrending = LabelDetrending().fit(z[:n], cut(labels, slice(0, n)))
    assert detrending.transform(z[:0], cut(labels, slice(0, 0))).shape == (0, 8)


def test_detrending_with_missing_labels():
    z, labels, _, n = giants(1)
    few = {k: v.copy() for k, v in labels.items()}
    few["logg"][: int(0.7 * n)] = np.nan
    few["teff"][5] = np.nan
    detrending = LabelDetrending().fit(z[:n], cut(few, slice(0, n)))
    assert detrending.removed_ == ("teff",)
    moved = detrending.transform(z, few)
    assert np.all(np.isfinite(moved))
    assert np.linalg.norm(moved[5] - detrending.transform(z, labels)[5]) < 0.5 * np.linalg.norm(z[5] - moved[5]) + 0.5
    with pytest.raises(DataError, match="none of the labels"):
        LabelDetrending().fit(z[:n], {"fe_h": labels["fe_h"][:n]})
    with pytest.raises(DataError, match="too few"):
        LabelDetrending().fit(z[:30], cut(labels, slice(0, 30)))
    with pytest.raises(InputError, match="fe_h"):
        detrending.transform(z, {"teff": labels["teff"], "alpha_m": labels["alpha_m"]})


def test_shrunk_metric_is_eq_4():
    rng = np.random.default_rng(0)
    a, b = (m @ m.T for m in rng.normal(size=(2, 4, 4)))
    within, field = 0.1 * a, a + b
    matrix, sigma = shrunk_metric(within, field)
    assert np.all(np.diff(sigma) >= 0)
    scale = np.sqrt(1 - sigma**2) / sigma
    np.testing.assert_allclose(matrix.T @ field @ matrix, np.diag(scale**2), atol=1e-8)
    np.testing.assert_allclose(matrix.T @ within @ matrix, np.diag((scale * sigma) ** 2), atol=1e-8)
    noisy, wider = shrunk_metric(within, field, field, 0.5)
    assert np.all(wider > sigma) and noisy.shape == (4, 4)


def forms_of(seed=0, shuffle=False, **kwargs):
    z, labels, clusters, n = giants(seed, **kwargs)
    if shuffle:
        clusters = np.random.default_rng(seed).permutation(clusters)
    moved = LabelDetrending().fit(z[:n], cut(labels, slice(0, n))).transform(z, labels)
    noise = {"noise": 0.05**2 * np.eye(8)}
    return {
        k: Representation(Evaluation(v[:n], v[n:], clusters), noise) for k, v in {"plain": z, "moved": moved}.items()
    }


def test_search_rates_are_those_of_the_engine():
    forms = forms_of(n=500, n_clusters=5)
    search = Search(forms, [4, 8])
    for i in (0, 7, len(search.candidates) - 1):
        c = search.candidates[i]
        e = forms[c.representation].evaluation
        for left in (0, 2):
            matrix = forms[c.representation].metric(c, (left, 3))
            want = e.rates(matrices={e.names[3]: matrix}, k=c.k).overall
            assert search.rates[i, left, 3] == pytest.approx(want, abs=1e-9)


def test_many_clusters_are_searched_in_folds(monkeypatch):
    monkeypatch.setattr("chemscale.rsca.auto.MAX_FOLDS", 4)
    forms = forms_of(n=500, n_clusters=7)
    search = Search(forms, [6])
    assert search.rates.shape[1:] == (4, 7)
    c, e = search.candidates[2], forms[search.candidates[2].representation].evaluation
    matrix = forms[c.representation].metric(c, (1, 5, 2, 6))  # folds 1 and 2
    assert search.rates[2, 1, 6] == pytest.approx(e.rates(matrices={e.names[6]: matrix}, k=c.k).overall, abs=1e-9)
    shown = search.rates[:, 1, [0, 2, 3, 4, 6]]  # without cluster 5: neither fold 1 in the fits nor in the mean
    weights = search.sizes[[0, 2, 3, 4, 6]]
    np.testing.assert_allclose(search.scores(5), shown @ (weights / weights.sum()))


def test_committee_beats_the_plain_metric_and_is_honest():
    forms = forms_of()
    result = choose_metric(forms, ks=[5, 8])
    plain = forms["plain"].evaluation.rates("rsca").overall
    assert result.rates.overall < 0.5 * plain
    assert {c.representation for c in result.metric.committee} == {"moved"}
    z = {k: f.evaluation.members for k, f in forms.items()}
    # the map's distance is the committee's root mean square distance
    want = 0.0
    for c in result.metric.committee:
        x = forms[c.representation].centred[:, : c.k] @ forms[c.representation].metric(c)
        want = want + pdist(x) ** 2 / len(result.metric.committee)
    np.testing.assert_allclose(pdist(result.metric.transform(z)) ** 2, want, rtol=1e-8)


def knowing(forms):
    """The forms as they are where chemistry is known: with the field's scatter at fixed labels."""
    return {k: replace(f, targets=f.targets | {"residual": 0.05**2 * np.eye(8)}) for k, f in forms.items()}


def test_contrast_refines_where_chemistry_is_known_and_only_there():
    forms = forms_of(n=1500)
    committee = choose_metric(knowing(forms), ks=[5, 8], contrast=False)
    refined = choose_metric(knowing(forms), ks=[5, 8])
    assert refined.metric.matrix.shape[1] <= FEATURES
    assert refined.rates.overall < 1.2 * committee.rates.overall
    blind = (choose_metric(forms, ks=[8], contrast=c).metric.matrix for c in (True, False))
    np.testing.assert_array_equal(*blind)


def test_contrast_turns_towards_what_tells_strangers_apart():
    rng = np.random.default_rng(0)
    field = rng.standard_normal((2000, 4)) * [5, 5, 3, 3]
    clusters = np.repeat(np.arange(30), 5).astype(str)
    centres = (rng.standard_normal((30, 4)) * [5, 5, 3, 3])[np.repeat(np.arange(30), 5)]
    members = centres + rng.standard_normal((150, 4)) * [0.4, 2.5, 1, 1]  # scales of the first two are off
    engine = Evaluation(field, members, clusters)
    rates = []
    for matrix in (np.eye(4), None):
        maps = {}
        for name in engine.names:
            train = clusters != name
            maps[name] = refine(field, members[train], clusters[train]) if matrix is None else matrix
        rates.append(engine.rates(matrices=maps).overall)
    assert rates[1] < 0.8 * rates[0]
    np.testing.assert_array_equal(refine(field, members, clusters), refine(field, members, clusters))


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_clusters_give_a_half(seed):
    result = choose_metric(knowing(forms_of(seed, shuffle=True, n=1500)), ks=[5, 8])
    assert result.rates.overall == pytest.approx(0.5, abs=0.12)


def test_fewer_degrees_of_freedom_than_components_are_enough_for_shrunk_covariances():
    """Three of five clusters of three leave 6 degrees of freedom: too few for a sample covariance of 8 components."""
    forms = forms_of(4, n=1000, n_clusters=5, size=3)
    search = Search(forms, [4, 8])
    assert {c.k for c in search.candidates if c.shrinkage} == {4, 8}
    assert {c.k for c in search.candidates if not c.shrinkage} == {4}
    result = choose_metric(forms, ks=[4, 8])
    assert result.rates.overall < 0.05
    bare = {name: Representation(form.evaluation) for name, form in forms.items()}
    assert {c.k for c in choose_metric(bare, ks=[4, 8]).metric.committee} == {4}
    with pytest.raises(DataError, match="degrees of freedom"):
        choose_metric(bare, ks=[8])


def test_too_few_clusters():
    with pytest.raises(DataError, match="four clusters"):
        choose_metric(forms_of(n=500, n_clusters=3))


def gaussian_pairs(n_clusters, size, seed=2):
    rng = np.random.default_rng(seed)
    within = np.array([0.1, 0.3, 0.9])
    centres = rng.normal(size=(n_clusters, 3)) * np.sqrt(1 - within**2)
    members = centres.repeat(size, axis=0) + within * rng.normal(size=(n_clusters * size, 3))
    clusters = np.repeat([f"c{i}" for i in range(n_clusters)], size)
    pairs = held_out_pairs(Evaluation(rng.normal(size=(4000, 3)), members, clusters), max_field=2000)
    return pairs.sibling_ratio, pairs.field_ratio


@pytest.mark.parametrize(("n_clusters", "size"), [(60, 30), (150, 6)])
def test_ratio_is_calibrated_for_gaussian_pairs(n_clusters, size):
    siblings, field = gaussian_pairs(n_clusters, size)
    result = calibrate(siblings, field)
    if size == 30:
        assert result.slope == pytest.approx(1, abs=0.1)
        assert result.intercept == pytest.approx(0, abs=0.2)
    else:  # the MAD of six stars underestimates their scatter, so the printed recipe is overconfident
        assert 0.6 < result.slope < 0.95
    assert result.n_siblings.sum() == len(siblings) and result.n_field.sum() == len(field)
    # Bayes: among pairs given a probability, that fraction are siblings
    prior = 0.02
    p = sibling_probability(result.correct(np.concatenate([siblings, field])), prior)
    weight = np.r_[np.full(len(siblings), prior / len(siblings)), np.full(len(field), (1 - prior) / len(field))]
    truth = np.r_[np.ones(len(siblings)), np.zeros(len(field))]
    for low, high in [(0.0, 0.1), (0.1, 0.25), (0.25, 1.0)]:
        rows = (p >= low) & (p < high)
        assert np.average(p[rows], weights=weight[rows]) == pytest.approx(
            np.average(truth[rows], weights=weight[rows]), abs=0.06
        )


def test_correction_follows_heavy_tails_that_no_line_fits():
    """A few siblings far apart must not flatten the ratio of the near ones."""
    rng = np.random.default_rng(0)
    n, m = 3000, 60_000
    field = 4 - rng.exponential(30, m)
    siblings = np.where(rng.random(n) < 0.9, 4 - rng.exponential(1, n), 4 - rng.exponential(30, n))
    result = calibrate(siblings, field)
    for at in (3.5, 2.0, 0.0, -20.0):  # densities are known
        near = 0.9 * np.exp(at - 4) + 0.1 * np.exp((at - 4) / 30) / 30
        assert result.correct(at) == pytest.approx(np.log(near / (np.exp((at - 4) / 30) / 30)), abs=0.35)
    assert np.all(np.diff(result.values) >= 0) and np.all(np.diff(result.knots) > 0)


def test_prior_must_be_a_probability():
    with pytest.raises(InputError, match="prior"):
        sibling_probability(0.0, 0.0)
    assert sibling_probability([-800.0, 0.0, 800.0], 0.5) == pytest.approx([0, 0.5, 1])


def test_nuisance_plane_finds_what_velocity_marks():
    rng = np.random.default_rng(3)
    velocity = rng.normal(0, 30, 5000)
    x = rng.normal(size=(5000, 6))
    x[:, 4] += 1.5 * velocity / 30
    x[:, 5] += 0.8 * np.sin(velocity / 12)  # not linear in velocity
    mix = np.linalg.qr(rng.normal(size=(6, 6)))[0] * np.array([5, 4, 3, 2, 1, 0.5])
    plane = nuisance_plane(x @ mix, np.where(np.arange(5000) % 50 == 0, np.nan, velocity))
    assert plane.n_removed == 2
    rest = plane.remove(x @ mix)
    assert rest.shape == (5000, 4)
    assert (
        max(abs(np.corrcoef(rest[:, i], f)[0, 1]) for i in range(4) for f in (velocity, np.sin(velocity / 12))) < 0.05
    )
    assert nuisance_plane(x[:, :4], velocity).n_removed == 0
    with pytest.raises(DataError, match="groups"):
        nuisance_plane(x[:50], velocity[:50])


def test_self_detrending_needs_no_labels():
    z, _, clusters, n = giants(4)
    noise = {"noise": 0.05**2 * np.eye(8)}
    form = SelfDetrended(Evaluation(z[:n], z[n:], clusters), noise)
    view = form.view(())
    before = choose_metric({"plain": Representation(form.evaluation, noise)}, ks=[8]).rates.overall
    assert choose_metric({"self-detrended": form}, ks=[8]).rates.overall < 0.8 * before
    again = stored_detrending(view.detrending.to_dict())
    np.testing.assert_array_equal(again.transform(z), view.detrending.transform(z))
    assert again.names_ == ()
    np.testing.assert_allclose(view.field_coords(), again.transform(z[:n]))


def test_self_detrending_by_temperature_and_gravity_needs_no_chemistry():
    z, labels, clusters, n = giants(6, n=900, n_clusters=7)
    noise = {"noise": 0.05**2 * np.eye(8)}
    moved = {k: (labels[k][:n], labels[k][n:].copy(), np.empty(0)) for k in ("teff", "logg")}
    moved["teff"][1][3] = np.nan  # estimated from the coordinates
    form = SelfDetrended(Evaluation(z[:n], z[n:], clusters), noise, removed=moved)
    plain = Representation(form.evaluation, noise)
    rates = [choose_metric({"s": f}, ks=[8]).rates.overall for f in (form, plain)]
    assert rates[0] < 0.8 * rates[1]
    thin = form.with_field_of(form.evaluation.thinned(500))
    assert len(thin.removed["logg"][0]) == 500 and thin.view(()).rows(0)[0].shape == (500, 8)
    detrending = form.view(()).detrending
    again = stored_detrending(detrending.to_dict())
    assert again.names_ == ("teff", "logg")
    mine = cut(labels, slice(0, 50))
    np.testing.assert_array_equal(again.transform(z[:50], mine), detrending.transform(z[:50], mine))


def test_a_view_does_not_know_the_clusters_left_out():
    z, _, clusters, n = giants(5)
    noise = {"noise": 0.05**2 * np.eye(8)}
    other = z.copy()
    other[n + 12 : n + 18] += np.random.default_rng(0).normal(size=(6, 8))  # cluster 2 is another one
    views = [SelfDetrended(Evaluation(v[:n], v[n:], clusters), noise).view((2,)) for v in (z, other)]
    maps = [v.full_metric(8, 0.3, "noise", False, (2,)) for v in views]
    np.testing.assert_allclose(*maps, rtol=1e-6, atol=1e-9)  # the cluster enters a sum and is taken out again
    np.testing.assert_allclose(views[0].rows(2)[0], views[1].rows(2)[0], rtol=1e-6, atol=1e-9)
    assert not np.allclose(*(v.full_metric(8, 0.3, "noise") for v in views), rtol=1e-3)


def test_an_ignored_continuum_does_not_reach_the_features():
    rng = np.random.default_rng(0)
    used = np.ones(300, bool)
    used[140:170] = False
    basis = np.zeros((6, 300))
    x = np.linspace(-1, 1, 140)
    mean = np.ones(300)
    basis[0, :140], basis[1, :140], basis[2, 170:] = 1, x, 1  # continuum errors of two detectors
    basis[3:, used] = rng.normal(size=(3, 270))
    basis = np.linalg.qr(basis.T)[0].T
    directions = continuum_directions(basis, mean, used)
    assert directions.shape == (6, 6)
    tilt = basis[:, :140] @ (0.01 * x)
    field = rng.normal(size=(2000, 6))
    members = rng.normal(size=(12, 6)).repeat(5, axis=0) * 0.9 + 0.4 * rng.normal(size=(60, 6))
    form = Representation(
        Evaluation(field, members, np.repeat([f"c{i}" for i in range(12)], 5)), {"noise": 0.01 * np.eye(6)}, directions
    )
    heard = [np.linalg.norm(tilt @ form.full_metric(6, 0.3, "noise", ignore)) for ignore in (False, True)]
    assert heard[1] < 0.4 * heard[0]


def test_noisy_members_weigh_less():
    rng = np.random.default_rng(1)
    clusters = np.repeat([f"c{i}" for i in range(30)], 6)
    loud = np.arange(180) % 3 == 0
    members = rng.normal(size=(30, 3)).repeat(6, axis=0) + rng.normal(size=(180, 3)) * np.where(loud, 1.0, 0.1)[:, None]
    e = Evaluation(rng.normal(size=(500, 3)), members, clusters)
    equal, weighted = Representation(e), Representation(e, weights=np.where(loud, 0.01, 1.0))
    assert np.trace(weighted.within()) < 0.2 * np.trace(equal.within())
    np.testing.assert_allclose(Representation(e, weights=np.full(180, 0.7)).within(), equal.within())


def test_metrics_do_not_hear_extinction_that_siblings_share():
    rng = np.random.default_rng(3)
    clusters = np.repeat([f"c{i:02d}" for i in range(20)], 6)
    extinction = np.r_[rng.normal(size=3000), rng.normal(size=20).repeat(6)]
    chem = np.r_[rng.normal(size=3000), rng.normal(size=20).repeat(6)]
    z = np.stack([chem, extinction, rng.normal(size=3120), rng.normal(size=3120)], axis=1)
    z += 0.2 * rng.normal(size=z.shape)
    z[:, 2] += 0.5 * extinction
    nuisances = covariate_directions(z[:3000], [extinction[:3000], rng.normal(size=3000)])
    assert nuisances.shape == (1, 4)  # the second covariate leaves no mark
    noise = {"noise": 0.04 * np.eye(4)}
    e = Evaluation(z[:3000], z[3000:], clusters)
    worst = []
    for form in (Representation(e, noise), Representation(e, noise, nuisances=nuisances)):
        for kind in ("noise", "mad"):
            x = z[:3000] @ form.full_metric(4, 0.3 if kind == "noise" else 0.0, kind)[:, :2]
            worst.append(max(abs(np.corrcoef(v, extinction[:3000])[0, 1]) for v in x.T if v.std() > 0))
    assert min(worst[:2]) > 0.5
    assert max(worst[2:]) < 0.05
    assert covariate_directions(z[:3000], [np.full(3000, np.nan)]) is None


def test_chemistry_that_follows_extinction_by_chance_is_not_ignored_with_it():
    rng = np.random.default_rng(4)
    clusters = np.repeat([f"c{i:02d}" for i in range(20)], 6)
    extinction = np.r_[rng.normal(size=3000), rng.normal(size=20).repeat(6)]
    chem = np.r_[rng.normal(size=3000), rng.normal(size=20).repeat(6)]
    chem[:3000] += 0.05 * extinction[:3000]  # a gradient of the field
    z = np.stack([100 * chem, extinction, *rng.normal(size=(2, 3120))], axis=1) + 0.1 * rng.normal(size=(3120, 4))
    leaking = covariate_directions(z[:3000], [extinction[:3000]])
    e = Evaluation(z[:3000], z[3000:], clusters)
    noise, rates = {"noise": 0.01 * np.eye(4)}, []
    for hold in (False, True):
        form = Representation(e, noise, nuisances=leaking, hold_leading=hold)
        matrix = form.full_metric(4, 0.3, "noise")[:, :1]
        rates.append(e.rates(matrices=dict.fromkeys(e.names, matrix)).overall)
        assert abs(np.corrcoef((z[:3000] @ matrix)[:, 0], extinction[:3000])[0, 1]) < 0.1
    assert rates[1] < 0.001 and rates[0] > 3 * rates[1]


@pytest.mark.parametrize("seed", range(3))
def test_likeness_needs_little_correction_on_unseen_clusters(seed):
    """Clusters differ in scatter, members are heavy-tailed: eq. (5) is far too sure, the fitted laws are not."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 14, 20)
    spread = np.exp(0.3 * rng.normal(size=20)).repeat(sizes)[:, None]
    within = np.r_[0.1, 0.2, 0.4, np.full(5, 0.9)]
    centres = (rng.normal(size=(20, 8)) * np.sqrt(1 - within**2)).repeat(sizes, axis=0)
    members = centres + spread * within * rng.standard_t(5, size=(sizes.sum(), 8))
    names = np.repeat([f"c{i:02d}" for i in range(20)], sizes)
    pairs = held_out_pairs(Evaluation(rng.normal(size=(4000, 8)), members, names), max_field=3000)
    assert calibrate(pairs.sibling_ratio, pairs.field_ratio).slope < 0.5
    found = Likeness.fit(pairs.by_cluster, 8)
    assert 0.65 < found.correction.slope < 1.35
    again = Likeness.from_json(json.loads(jsonio.text(found.to_json())))
    d = np.linspace(0.05, 30, 200)
    np.testing.assert_allclose(again.log_ratio(d), found.log_ratio(d))
    assert np.all(np.diff(found.model.log_ratio(d)) <= 1e-9)
    chance, low, high = found.probability(d, 1e-3)
    assert np.all((low <= chance) & (chance <= high))
    assert chance.max() <= found.highest(1e-3) and again.n_clusters == 20
    assert bool(found.caution) == (not 0.7 <= found.correction.slope <= 1.3)
    flat = replace(found, correction=replace(found.correction, slope=0.31), n_clusters=8)
    assert flat.caution == (
        "the likeness is not calibrated: held-out clusters ask for 0.31 of the logarithm of its ratios and it rests on "
        "8 clusters"
    )


def test_a_large_cluster_does_not_speak_for_all():
    """Pairs go as the square of the members; what they are worth does not."""
    rng = np.random.default_rng(5)
    sizes = [60, 6, 5, 5, 4, 4]
    near = [s * np.sqrt(rng.chisquare(4, n * (n - 1) // 2)) for n, s in zip(sizes, (0.5, *[1.0] * 5), strict=True)]
    pairs = PairDistances(near, [8 * np.sqrt(rng.chisquare(4, 500)) for _ in sizes])
    np.testing.assert_allclose(pairs.freedom, np.array(sizes) - 1)
    for weights in pairs.weights():
        assert weights.sum() == pytest.approx(78)
    alike = PairDistances([np.concatenate(near)], [np.concatenate(pairs.field)])
    scales = [m.scale[0] * m.shape / m.tail[0] for m in (PairModel.fit(pairs), PairModel.fit(alike))]
    assert scales[0] > 1.2 * scales[1]


def test_the_pair_model_is_the_law_it_was_drawn_from():
    """Student-t difference vectors of four dimensions, of two widths."""
    rng = np.random.default_rng(1)

    def distances(scale):
        gamma = rng.chisquare(6, 40_000) / 6
        return scale * np.sqrt(rng.chisquare(4, 40_000) / gamma)

    near, far = distances(1.0), distances(5.0)
    model = PairModel.fit(PairDistances(np.split(near, 4000), np.split(far, 4000)))
    assert model.shape == pytest.approx(2, rel=0.1) and model.tail == pytest.approx((3, 3), rel=0.15)
    assert model.scale[1] / model.scale[0] == pytest.approx(25, rel=0.1)
