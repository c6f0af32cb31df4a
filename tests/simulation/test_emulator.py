"""The emulator reader, on a small file made here and on the real ones where present."""

import itertools

import numpy as np
import pytest

from chemscale.errors import InputError
from chemscale.simulation import Simulation, simulate_block
from chemscale.simulation.emulator import Emulator
from chemscale.simulation.lines import grid

HBAND = ["teff", "logg", "fe_h", "c_fe", "n_fe", "o_fe", "mg_fe", "al_fe", "si_fe", "ca_fe", "ni_fe"]
LOWRES = ["teff", "logg", "fe_h", "c_fe", "alpha_fe"]


def small(names, wave, seed=0, components=3, training=7):
    rng = np.random.default_rng(seed)
    d = 11 if len(names) == 11 else 7
    terms = 1 + d + d * (d + 1) // 2
    low = {"teff": 3950.0, "logg": 1.4, "fe_h": -1.3} if d == 11 else {"teff": 4000.0, "logg": 2.5, "fe_h": -2.6}
    high = {"teff": 5050.0, "logg": 3.1, "fe_h": 0.45} if d == 11 else {"teff": 7000.0, "logg": 5.0, "fe_h": 0.4}
    data = {
        "wave": wave,
        "mean": np.full(wave.size, 0.9, "f4"),
        "basis": rng.normal(0, 0.01, (components, wave.size)).astype("f4"),
        "deg": np.array(2),
        "poly_w": rng.normal(0, 0.3, (terms, components)),
        "train_x": rng.uniform(-1, 1, (training, d)),
        "lengthscale": rng.uniform(1, 4, d),
        "kern_alpha": rng.normal(0, 0.5, (training, components)),
        "label_names": np.array(names),
        "label_lo": np.array([low.get(n, -0.5) for n in names]),
        "label_hi": np.array([high.get(n, 0.7) for n in names]),
    }
    if d == 7:
        data["transform"] = np.array("flux=exp(-g**2)")
    return data


def by_hand(data, label):
    """One star, loops only."""
    t = 5040 / label[0]
    if len(label) == 11:
        x = [2 * (a - lo) / (hi - lo) - 1 for a, lo, hi in zip(label, data["label_lo"], data["label_hi"])]
        x[0] = (t - 5040 / 4460) / 0.14
    else:
        q = label[3] - label[4] - 0.26
        s = 1 / (1 + np.exp((label[0] - 4700) / 250))
        x = [(t - 0.95) / 0.25, (label[1] - 3.75) / 1.25, (label[2] + 1.1) / 1.5, (label[2] + label[3] + 0.6) / 1.8,
             (label[4] - 0.22) / 0.47, np.log1p(np.exp(q / 0.05)) * 0.1 * s, np.tanh(q / 0.15) * s]  # fmt: skip
    monomials = [1.0] + [
        np.prod([x[i] for i in c]) for k in (1, 2) for c in itertools.combinations_with_replacement(range(len(x)), k)
    ]
    y = data["mean"].astype(float).copy()
    for m in range(len(data["basis"])):
        c = sum(p * w for p, w in zip(monomials, data["poly_w"][:, m]))
        for train, alpha in zip(data["train_x"], data["kern_alpha"][:, m]):
            r = np.sqrt(5 * sum(((a - b) / s) ** 2 for a, b, s in zip(x, train, data["lengthscale"])))
            c += alpha * (1 + r + r * r / 3) * np.exp(-r)
        y += c * data["basis"][m]
    return np.exp(-(y**2)) if len(label) == 5 else y


@pytest.mark.parametrize(("names", "seed"), [(HBAND, 1), (LOWRES, 2)])
def test_evaluation_by_hand(tmp_path, names, seed):
    data = small(names, np.linspace(4000, 5000, 40), seed)
    np.savez(tmp_path / "e.npz", **data)
    emulator = Emulator(tmp_path / "e.npz")
    rng = np.random.default_rng(9)
    labels = rng.uniform(emulator.low, emulator.high, (4, len(names)))
    got = emulator.flux(labels)
    for row, label in zip(got, labels):
        np.testing.assert_allclose(row, by_hand(data, label), rtol=2e-5)


def test_labels_outside_are_refused_and_clipped(tmp_path):
    np.savez(tmp_path / "e.npz", **small(LOWRES, np.linspace(4000, 5000, 20)))
    emulator = Emulator(tmp_path / "e.npz")
    wild = np.array([[9000.0, 4.0, 0.0, 0.0, 0.1]])
    with pytest.raises(InputError, match="teff"):
        emulator.flux(wild)
    with pytest.raises(InputError, match="outside"):
        emulator.flux(np.array([[5000.0, np.nan, 0.0, 0.0, 0.1]]))
    assert np.isfinite(emulator.flux(emulator.clip(wild))).all()


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="no emulator file"):
        Emulator(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(InputError):
        Emulator(tmp_path / "text.npz")
    data = small(HBAND, np.linspace(1, 2, 20))
    np.savez(tmp_path / "cut.npz", **data)
    raw = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError):
        Emulator(tmp_path / "cut.npz")
    np.savez(tmp_path / "less.npz", **{k: v for k, v in data.items() if k != "kern_alpha"})
    with pytest.raises(InputError, match="kern_alpha"):
        Emulator(tmp_path / "less.npz")
    np.savez(tmp_path / "shape.npz", **(data | {"mean": data["mean"][:-1]}))
    with pytest.raises(InputError, match="mean"):
        Emulator(tmp_path / "shape.npz")
    np.savez(tmp_path / "names.npz", **(data | {"label_names": np.array(["a", "b"])}))
    with pytest.raises(InputError, match="labels"):
        Emulator(tmp_path / "names.npz")
    np.savez(tmp_path / "pickle.npz", **(data | {"mean": np.array([{}], dtype=object)}))
    with pytest.raises(InputError, match="pickle"):
        Emulator(tmp_path / "pickle.npz")


def test_a_survey_from_an_emulator(tmp_path):
    np.savez(tmp_path / "h.npz", **small(HBAND, grid("hband").wavelength))
    path = str(tmp_path / "h.npz")
    simulation = Simulation(60, 1, seed=2, emulator=path, instrument="none")
    block = simulate_block(simulation, np.arange(20))
    emulator = Emulator(path)
    labels = simulation._emulator_labels(block.stars)
    assert np.all(labels >= emulator.low - 1e-9) and np.all(labels <= emulator.high + 1e-9)
    np.testing.assert_allclose(block.observed.flux, emulator.flux(labels), atol=2e-6)
    with pytest.raises(InputError, match="grid"):
        Simulation(60, 0, grid="lowres", emulator=path).spectra


def test_real_emulators_reproduce_their_training_spectra(shared_data):
    folder = shared_data / "synthetic"
    for name, limit in (("hband", 0.003), ("lowres", 0.008)):
        emulator = Emulator(folder / f"{name}_emulator.npz")
        with np.load(folder / f"{name}_synth.npz") as z:
            labels = z["labels"][:40].astype(float)
            flux = z["flux_u16"][:40] * float(z["flux_scale"])
        made = emulator.flux(emulator.clip(labels))
        assert np.sqrt(np.mean((made - flux) ** 2)) < limit
