"""Line data, ionisation, molecules, curve of growth and built-in spectra."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import wofz

from chemscale.simulation import atmosphere, atomic, bands
from chemscale.simulation.lines import LineSpectra, curve_of_growth, grid


@pytest.fixture(scope="module")
def hband():
    return LineSpectra(grid("hband"))


def giant(n=1, teff=4500.0, logg=2.5, **xh):
    labels = {"teff": np.full(n, teff), "logg": np.full(n, logg)}
    return labels, {"Fe": np.zeros(n)} | {k: np.full(n, v) for k, v in xh.items()}


def depth_at(spectra, vacuum, labels, abundances):
    flux = spectra.flux(labels, abundances)[0]
    at = np.searchsorted(spectra.grid.wavelength, vacuum)
    return 1 - flux[at - 2 : at + 3].min()


def test_air_and_vacuum_agree_with_known_lines():
    # Mg b at 5183.604 in air is at 5185.048 in vacuum; Si I 15888.41 at 15892.75
    assert atomic.air_to_vacuum(np.array(5183.604)) == pytest.approx(5185.048, abs=0.01)
    assert atomic.air_to_vacuum(np.array(15888.41)) == pytest.approx(15892.75, abs=0.02)
    wave = np.linspace(4000, 17000, 50)
    np.testing.assert_allclose(atomic.vacuum_to_air(atomic.air_to_vacuum(wave)), wave, rtol=1e-9)


def test_line_lists_are_complete_and_sane():
    species = "Fe Mg Al Si Ca Ti Ni Mn K Na S V Cr Co Cu Ce C P"
    for name, low, high, needed in (
        ("lines_hband", 15050, 17000, set(species.split())),
        ("lines_optical", 3990, 10420, {"Fe", "Mg", "Ca", "Na", "Ti", "Cr", "Ba", "Sr", "C", "O"}),
    ):
        table = atomic.atomic_lines(name)
        assert len(table.element) > 380
        assert needed <= set(table.element) <= set(atomic.elements())
        assert low < table.wavelength.min() and table.wavelength.max() < high
        assert np.all(table.excitation >= 0) and np.all(table.excitation < 12)
        assert len(set(zip(table.element, table.stage, table.wavelength, strict=True))) == len(table.element)


def test_hydrogen_lines_are_where_they_are():
    table = atomic.hydrogen_lines(4000, 17000)
    for vacuum in (6564.6, 4862.7, 10052.1, 16811.1, 16411.7):
        assert np.min(np.abs(table.wavelength - vacuum)) < 0.5


def test_band_heads_of_carbon_monoxide():
    """Second-overtone heads 3-0, 4-1, 5-2, 6-3 at 1.558, 1.578, 1.598, 1.619 micron."""
    lines = bands.band_lines("CO", 15500, 16250)
    for head in (15582, 15780, 15982, 16189):
        near = (lines.wavelength > head - 6) & (lines.wavelength < head + 8)
        before = (lines.wavelength > head - 26) & (lines.wavelength < head - 6)
        assert near.sum() > before.sum()


@pytest.mark.parametrize(("name", "head"), [("CNv", 4216.0), ("C2", 5165.2)])
def test_band_heads_in_the_optical(name, head):
    lines = bands.band_lines(name, head - 60, head + 60)
    air = atomic.vacuum_to_air(lines.wavelength)
    counts, edges = np.histogram(air[(air > head - 4) & (air < head + 4)], bins=8)
    outside = np.histogram(air[air > head + 8], bins=40)[0]
    assert counts.max() > 2 * max(outside.max(), 1), edges[counts.argmax()]


def test_sun_and_giant_have_sensible_pressures():
    state = atmosphere.layer(np.array([5777.0, 4500.0]), np.array([4.44, 2.5]), {"Fe": np.zeros(2)})
    assert 0.3 < state.log_electron[0] < 1.3  # about 0.8 near optical depth 0.3
    assert -1.0 < state.log_electron[1] < 0.2
    # charge is conserved: ions of all donors make the electrons
    nuclei = 10**state.log_gas / 1.085
    ions = sum(
        nuclei
        * state.abundance[s]
        * 10 ** (atmosphere.log_stage_over_partition(s, 1, state) + atomic.elements()[s].log_partition(state.theta, 1))
        for s in ("H", "C", "Na", "Mg", "Al", "Si", "K", "Ca", "Fe", "Ni")
    )
    np.testing.assert_allclose(ions, 10**state.log_electron, rtol=1e-4)


def test_molecules_conserve_carbon_and_oxygen():
    abundances = {"Fe": np.zeros(3), "C": np.array([-0.2, 0.0, 1.0]), "O": np.zeros(3)}
    state = atmosphere.layer(np.array([4000.0, 4600.0, 4300.0]), np.full(3, 2.0), abundances, 0.8)
    made = atmosphere.molecules(state)
    for element, parts in (("C", ("CO", "CN", "CH", "C2")), ("O", ("CO", "OH"))):
        total = sum(made[p] * (2 if p == "C2" else 1) for p in parts)
        assert np.all(total < state.abundance[element] * 1.02)
    # carbon-rich: oxygen is locked up, C2 appears
    assert made["CO"][2] > 0.9 * state.abundance["O"][2]
    assert made["C2"][2] > 1e3 * made["C2"][0]


def test_curve_of_growth_against_the_integral():
    for log_eta, log_a in ((-3.0, -2.0), (0.5, -1.0), (2.0, -2.5), (4.0, -1.5)):
        eta, a = 10**log_eta, 10**log_a

        def depth(v, eta=eta, a=a):
            x = eta * wofz(v + 1j * a).real
            return x / (1 + x)

        expected = 2 * (quad(depth, 0, 10, limit=300)[0] + quad(depth, 10, 5e3, limit=500)[0])
        got = curve_of_growth(np.array([log_eta]), np.array([log_a]))[0]
        assert got == pytest.approx(expected, rel=0.03)


def test_lines_answer_to_their_element(hband):
    labels, base = giant()
    for element, vacuum in (("Mg", 15770.1), ("Al", 16723.5), ("Si", 15964.4), ("Fe", 15298.7), ("Ni", 16593.8)):
        weak = depth_at(hband, vacuum, labels, base | {element: np.array([-0.4])})
        strong = depth_at(hband, vacuum, labels, base | {element: np.array([0.4])})
        assert strong > weak + 0.02, element


def test_spectra_are_partly_degenerate(hband):
    """Cooling imitates metals, as in nature: the gradients are correlated, but not the same."""
    labels, base = giant()
    reference = hband.flux(labels, base)[0]
    cooler = hband.flux(giant(teff=4400.0)[0], base)[0] - reference
    richer = hband.flux(labels, {"Fe": np.array([0.1])})[0] - reference
    r = np.corrcoef(cooler, richer)[0, 1]
    assert 0.3 < r < 0.98


def test_built_in_spectra_resemble_the_emulated_ones(hband, shared_data):
    from chemscale.simulation.emulator import Emulator

    emulator = Emulator(shared_data / "synthetic" / "hband_emulator.npz")
    rng = np.random.default_rng(3)
    parameters = [rng.uniform(4100, 4900, 12), rng.uniform(1.5, 3, 12), rng.uniform(-0.6, 0.3, 12)]
    labels = emulator.clip(np.stack([*parameters, *rng.uniform(-0.1, 0.2, (8, 12))], axis=1))
    other = emulator.flux(labels)
    fe = labels[:, 2]
    names = ("C", "N", "O", "Mg", "Al", "Si", "Ca", "Ni")
    mine = hband.flux(
        {"teff": labels[:, 0], "logg": labels[:, 1]},
        {"Fe": fe} | {e: fe + labels[:, 3 + i] for i, e in enumerate(names)},
    )
    assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.6
    assert abs(mine.mean() - other.mean()) < 0.03
