"""Populations, blocks, the instrument and the source."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemscale.errors import InputError
from chemscale.schema import APOGEE_ELEMENTS, Flag
from chemscale.simulation import Simulation, simulate_block
from chemscale.simulation.clusters import cluster_sizes, concatenate, draw_field, draw_members
from chemscale.simulation.instrument import CHIPS
from chemscale.simulation.population import identify, to_equatorial
from chemscale.survey.sources.base import Source
from chemscale.survey.sources.simulated import LABELS, SimulatedSource


@pytest.fixture(scope="module")
def simulation():
    return Simulation(700, 6, seed=11)


@pytest.fixture(scope="module")
def whole(simulation):
    return simulate_block(simulation, np.arange(simulation.n_stars))


def test_any_cut_gives_the_same_stars(simulation, whole):
    n = simulation.n_stars
    for rows in (np.arange(0, 40), np.arange(250, 300), np.array([n - 1, 0, 301]), np.arange(n - 5, n)):
        part = simulate_block(simulation, rows)
        assert part.stars.star_id == [whole.stars.star_id[r] for r in rows]
        np.testing.assert_array_equal(part.observed.flux, whole.observed.flux[rows])
        np.testing.assert_array_equal(part.observed.error, whole.observed.error[rows])
        np.testing.assert_array_equal(part.labels["abundance"], whole.labels["abundance"][rows])


def test_field_stars_do_not_depend_on_the_size_of_the_survey(whole):
    larger = Simulation(2000, 0, seed=11)
    first = simulate_block(larger, np.arange(3))
    at = [i for i, c in enumerate(whole.stars.cluster) if c == ""][:3]
    np.testing.assert_array_equal(first.observed.flux, whole.observed.flux[at])


def test_seeds_differ():
    a, b = (simulate_block(Simulation(4, 0, seed=s), np.arange(4)).observed.flux for s in (1, 2))
    assert not np.array_equal(a, b)


@given(st.integers(1, 5000), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_every_star_has_one_row(stars, clusters):
    simulation = Simulation(stars, clusters)
    member, number = simulation.rank(np.arange(simulation.n_stars))
    assert sorted(number[member]) == list(range(simulation.n_members))
    assert sorted(number[~member]) == list(range(stars))


def test_cluster_sizes():
    assert sum(cluster_sizes(22)) == 185
    assert all(min(cluster_sizes(n)) >= 2 and len(cluster_sizes(n)) == n for n in (1, 5, 50, 300))


@given(
    st.lists(st.integers(0, 99_999_999), min_size=2, max_size=60, unique=True), st.floats(0, 359.99), st.floats(-85, 85)
)
@settings(max_examples=60, deadline=None)
def test_identifiers_are_unique_and_well_formed(numbers, ra, dec):
    n = len(numbers)
    _, _, ids = identify(np.full(n, ra), np.full(n, dec), np.array(numbers))
    assert len(set(ids)) == n
    assert all(len(i) == 18 and i.startswith("2M") and i[10] in "+-" for i in ids)


def test_galactic_centre_and_pole():
    ra, dec = to_equatorial(np.array([0.0, 0.0]), np.array([0.0, 90.0]))
    np.testing.assert_allclose(ra, [266.40, 192.86], atol=0.02)
    np.testing.assert_allclose(dec, [-28.94, 27.13], atol=0.02)


def test_disc_population():
    stars = concatenate([draw_field(3, b, "disc", "hband") for b in range(16)])
    inside = (stars.teff > 4000) & (stars.teff < 5000) & (stars.logg > 1.5) & (stars.logg < 3)
    assert 0.85 < inside.mean() < 0.99
    # two sequences in [alpha/Fe] at the same [Fe/H]
    poor = (stars.fe_h > -0.6) & (stars.fe_h < -0.3)
    alpha = stars.alpha_fe[poor]
    low, between, high = (alpha < 0.11).sum(), ((alpha > 0.12) & (alpha < 0.15)).sum(), (alpha > 0.16).sum()
    assert 8 * between < min(low, high)
    assert np.corrcoef(stars.fe_relative("Mg"), stars.fe_relative("O"))[0, 1] > 0.8
    # massive giants dredge up more nitrogen
    assert np.corrcoef(stars.mass, stars.fe_relative("N"))[0, 1] > 0.4
    # hotter where metal-poor, at given gravity
    middle = np.abs(stars.logg - 2.2) < 0.1
    assert np.corrcoef(stars.teff[middle], stars.fe_h[middle])[0, 1] < -0.35
    assert np.median(stars.snr) == pytest.approx(157, rel=0.1)


def test_clusters_are_alike_inside():
    members = draw_members(5, 22, "hband")
    fe, mg = members.abundance[:, APOGEE_ELEMENTS.index("Fe")], members.fe_relative("Mg")
    inside, between = [], []
    for name in np.unique(members.cluster):
        of = members.cluster == name
        if of.sum() >= 5:
            inside += [fe[of].std(ddof=1), mg[of].std(ddof=1)]
            between.append(fe[of].mean())
            assert members.velocity[of].std() < 1.5
            nights = {",".join(w.rsplit("-", 1)[0] for w in v.split(",")) for v, o in zip(members.visits, of) if o}
            assert 1 <= len(nights) <= 2
    assert 0.008 < np.mean(inside) < 0.02
    assert np.std(between) > 0.08


def test_metal_poor_catalogue():
    stars = concatenate([draw_field(0, b, "metal-poor", "lowres") for b in range(24)])
    assert stars.fe_h.mean() == pytest.approx(-1.23, abs=0.05)
    assert stars.fe_h.std() == pytest.approx(0.56, abs=0.04)
    assert stars.fe_relative("C").mean() == pytest.approx(0.2, abs=0.04)
    assert np.corrcoef(stars.fe_h, stars.alpha_fe)[0, 1] == pytest.approx(-0.3, abs=0.06)
    assert np.corrcoef(stars.fe_h, stars.fe_relative("C"))[0, 1] == pytest.approx(-0.17, abs=0.06)
    assert stars.snr.mean() == pytest.approx(50, abs=1)
    assert stars.teff.min() > 4000 and stars.teff.max() < 7000


def test_chips_noise_and_bad_pixels(whole):
    seen = whole.observed
    gap = np.ones(seen.flux.shape[1], bool)
    for a, b in CHIPS:
        gap[a:b] = False
    assert gap.sum() == 1061
    assert np.all(seen.flux[:, gap] == 0) and np.all(seen.flux[:, ~gap].std(1) > 0)
    bad = seen.error >= 1e10
    assert bad[:, gap].all()
    assert 0.001 < bad[:, ~gap].mean() < 0.1
    assert np.isfinite(seen.flux).all() and (seen.error > 0).all()
    # a bright star's errors are small
    bright = np.argmax(whole.stars.snr)
    assert np.median(seen.error[bright, ~gap]) < 0.006


def test_errors_describe_the_noise():
    """Without systematics, (observed - clean) / error is a standard normal."""
    simulation = Simulation(256, 0, seed=4, instrument="noise")
    block = simulate_block(simulation, np.arange(256))
    z = (block.observed.flux - simulation.clean_flux(block.stars)) / block.observed.error
    assert z.std() == pytest.approx(1, abs=0.01)
    assert abs(z.mean()) < 0.01


def test_interstellar_band_grows_with_extinction_at_the_velocity_of_the_gas():
    simulation = Simulation(256, 0, seed=8)
    stars = draw_field(8, 0, "disc", "hband")
    stars.extinction[:] = np.where(np.arange(256) < 128, 0.0, 0.5)
    stars.snr[:] = 1e5
    stars.ism_velocity[:] = 0.0
    stars.velocity[:] = 80.0
    stars.barycentric[:] = 0.0
    seen = simulation.optics.observe(np.ones((256, 8575), np.float32), stars, np.random.default_rng(0))
    wave = simulation.wavelengths.wavelength
    difference = seen.flux[:128].mean(0) - seen.flux[128:].mean(0)
    near = (wave > 15250) & (wave < 15290)
    peak = wave[near][np.argmax(difference[near])]
    assert difference[near].max() > 0.04
    assert peak == pytest.approx(15272.42 * (1 - 80 / 299792.458), abs=0.6)


def test_tellurics_move_with_velocity():
    simulation = Simulation(256, 0, seed=8)
    optics = simulation.optics
    still, moving = (optics._shifted(optics._tellurics, s) for s in (0.0, 10.0))
    np.testing.assert_allclose(still[:, 10:], moving[:, :-10], atol=1e-6)
    assert still.max() > 0.05


def test_labels_have_errors_and_truth_does_not(simulation, whole):
    truth = simulation.truth(np.arange(simulation.n_stars))
    assert truth.star_id == whole.stars.star_id
    np.testing.assert_array_equal(truth.abundance, whole.stars.abundance)
    fe = APOGEE_ELEMENTS.index("Fe")
    error = whole.labels["abundance"][:, fe] - truth.abundance[:, fe]
    assert 0.005 < np.nanstd(error) < 0.03
    bad = whole.labels["quality"] == 1 << 23
    assert np.isnan(whole.labels["fe_h"][bad]).all()


def test_source_follows_the_protocol(simulation, whole):
    source = SimulatedSource(700, 6, 11)
    assert isinstance(source, Source)
    json.dumps(source.describe())
    plan = source.plan()
    assert [i.star_id for i in plan.items] == whole.stars.star_id
    there = pickle.loads(pickle.dumps(source))
    block = there.read(plan.items[90:95], plan.wavelength, plan.elements)
    np.testing.assert_array_equal(block.flux, whole.observed.flux[90:95])
    assert set(block.labels) == set(LABELS)
    assert block.flux.dtype == block.ivar.dtype == np.float32
    assert np.all(block.flags[:, :200] == int(Flag.GAP)) and np.all(block.ivar[:, :200] == 0)
    known = block.ivar > 0
    np.testing.assert_allclose(1 / np.sqrt(block.ivar[known]), whole.observed.error[90:95][known], rtol=1e-5)


def test_source_quarantines_what_is_not_its_own():
    from chemscale.survey.sources.base import Item

    source = SimulatedSource(10, 0, 1)
    plan = source.plan()
    block = source.read([Item("x", "simulated:999"), plan.items[3]], plan.wavelength, plan.elements)
    assert block.star_id == [plan.items[3].star_id]
    assert [r.star_id for r in block.rejected] == ["x"]
    with pytest.raises(InputError, match="own grid"):
        source.read(plan.items, plan.wavelength[:-1], plan.elements)
    with pytest.raises(InputError, match="not of this simulation"):
        SimulatedSource(10, 0, 2).read(plan.items, plan.wavelength, plan.elements)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stars": -1},
        {"stars": 0, "clusters": 0},
        {"stars": 5, "seed": -3},
        {"stars": 5, "grid": "uv"},
        {"stars": 5, "population": "halo"},
        {"stars": 5, "population": "metal-poor"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError):
        Simulation(**wrong)
    with pytest.raises(InputError, match="instrument"):
        Simulation(5, instrument="magic").optics
