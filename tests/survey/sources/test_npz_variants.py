"""NPZ files as people write them: kinds of identifiers, labels, masks and grids nobody thought of."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from chemscale.arrays import missing_pixels
from chemscale.errors import ChemscaleError, InputError
from chemscale.schema import Flag, validate
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.table import TableSource
from chemscale.survey.store.open import open_survey

N, P = 12, 50


def arrays(**changes) -> dict:
    rng = np.random.default_rng(3)
    data = {
        "flux": rng.normal(1, 0.02, (N, P)),
        "error": np.full((N, P), 0.02),
        "wavelength": np.linspace(5000, 5500, P),
        "star_id": np.array([f"2M{i:05d}" for i in range(N)]),
    }
    data.update(changes)
    return {k: v for k, v in data.items() if v is not None}


def store(tmp_path, compressed=False, **changes):
    path = tmp_path / "mine.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays(**changes))
    ingest(TableSource(str(path)), tmp_path / "s.zarr", max_error=0.05)
    return validate(open_survey(tmp_path / "s.zarr"))


IDS = [f"2M{i:05d}" for i in range(N)]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array(IDS), IDS),
        (np.array(IDS, "S7"), IDS),
        (np.array(IDS)[:, None], IDS),
        (np.arange(N) + 10**17, [str(i + 10**17) for i in range(N)]),
        (np.arange(N, dtype="u1"), [str(i) for i in range(N)]),
        (np.arange(N, dtype="f8"), [str(i) for i in range(N)]),
        (np.array(IDS, dtype=np.dtypes.StringDType()), None),
        (None, [f"mine-{i:08d}" for i in range(N)]),
    ],
    ids=["str", "bytes", "column", "int64", "uint8", "float64", "variable-length", "none"],
)
def test_identifiers(tmp_path, ids, expected):
    if expected is None:  # NumPy pickles these
        with pytest.raises((InputError, ValueError), match="object"):
            store(tmp_path, star_id=ids)
        return
    assert list(store(tmp_path, star_id=ids).star_id.values) == expected


def test_python_objects_matter_only_where_they_are_needed(tmp_path):
    ds = store(tmp_path, notes=np.array([{"any": "thing"}], dtype=object), history=np.array(None, dtype=object))
    assert ds.sizes["star"] == N
    for name in ("star_id", "cluster", "flux"):
        bad = np.array(arrays().get(name, np.array(["M 67", None] * (N // 2), dtype=object)), dtype=object)
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=f"{name} holds Python objects"):
            store(tmp_path / name, **{name: bad})


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "i4"])
def test_number_types(tmp_path, dtype):
    values = np.linspace(1, 3, N * P).reshape(N, P).astype(dtype)
    flux = store(tmp_path, flux=values, wavelength=np.arange(5000, 5000 + P).astype("i4")).flux.values
    np.testing.assert_array_equal(flux, values.astype("f4"))


def test_bad_pixels_are_flagged_not_lost(tmp_path):
    flux, error = arrays()["flux"], arrays()["error"]
    flux[0, 3], flux[1, 4], flux[2, 5], error[3, 6], error[4, 7], error[5, 8] = np.nan, np.inf, 0, 1e10, np.nan, 0
    flux[6, 9], error[7, 10], flux[8] = 1e300, -1, np.nan
    ds = store(tmp_path, flux=flux, error=error)
    assert ds.sizes["star"] == N - 1 and IDS[8] not in ds.star_id.values
    used = ~missing_pixels(ds.flux.values, ds.ivar.values, ds.flags.values)
    lost = {(int(ds.star_id.values[i][2:]), int(j)) for i, j in zip(*np.nonzero(~used), strict=True)}
    assert lost == {(0, 3), (1, 4), (2, 5), (3, 6), (4, 7), (5, 8), (6, 9), (7, 10)}
    assert np.isfinite(ds.flux.values).all() and np.isfinite(ds.ivar.values).all()
    at = {f: (ds.flags.values & f) != 0 for f in Flag}
    assert at[Flag.NON_FINITE][0, 3] and at[Flag.GAP][2, 5] and at[Flag.LARGE_ERROR][3, 6]


def test_masks_and_flags_of_any_kind(tmp_path):
    bad = np.zeros((N, P), bool)
    bad[2, 7] = True
    for kind in ("?", "u1", "i8", "f4"):
        ds = store(tmp_path / kind.replace("?", "q"), mask=bad.astype(kind))
        used = ~missing_pixels(ds.flux.values, ds.ivar.values, ds.flags.values)
        np.testing.assert_array_equal(used, ~bad)
    flags = np.zeros((N, P), np.int32)
    flags[0, 1], flags[1, 2], flags[2, 3] = Flag.TELLURIC, 1 << 12, Flag.USER | 1 << 20
    got = store(tmp_path / "own", flags=flags).flags.values
    assert got[0, 1] == Flag.TELLURIC and got[1, 2] == Flag.SURVEY_BAD and got[2, 3] == Flag.USER | Flag.SURVEY_BAD
    assert np.count_nonzero(got) == 3
    assert np.count_nonzero(store(tmp_path / "bool", flags=bad).flags.values == Flag.SURVEY_BAD) == 1
    with pytest.raises(InputError, match="flags holds float"):
        store(tmp_path / "float", flags=bad.astype(float))


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("q", "u1", "i8", "f4", "own", "bool", "float"):
        (tmp_path / name).mkdir()


def test_labels_of_any_kind(tmp_path):
    teff = np.arange(4500, 4500 + N)
    ds = store(
        tmp_path,
        teff=teff,
        logg=np.full((N, 1), 2, "i2"),
        fe_h=np.where(np.arange(N) == 3, -9999.99, -0.1),
        alpha_fe=np.linspace(0, 0.3, N).astype(">f4"),
        c_fe=np.ma.masked_less(np.linspace(-1, 1, N), 0),
        snr=np.where(np.arange(N) == 1, np.inf, 100.0),
        radial_velocity=np.where(np.arange(N) == 2, -1200.0, 5.0),
        extinction=np.zeros(N, "f2"),
        visits=np.full(N, 3),
        teff_error=np.full(N, 50.0),
        spin=np.full(N, 2.0),
        abundance=np.where(np.arange(3 * N).reshape(N, 3) == 0, np.nan, 0.2),
        abundance_error=np.full((N, 3), 0.01),
        element=np.array([b"Fe", b"Mg", b"Si"]),
        survey="mine",
    )
    np.testing.assert_array_equal(ds.teff.values, teff)
    assert (ds.logg.values == 2).all() and np.isnan(ds.fe_h.values[3]) and np.isnan(ds.snr.values[1])
    np.testing.assert_allclose(ds.alpha_m.values, np.linspace(0, 0.3, N), rtol=1e-6)
    assert ds.radial_velocity.values[2] == -1200 and (ds.n_visits.values == 3).all() and "visits" not in ds
    assert list(ds.element.values) == ["Fe", "Mg", "Si"] and np.isnan(ds.abundance.values[0, 0])
    assert ds.attrs["survey"] == "mine" and ds.attrs["ignored"] == ["spin"]
    assert (ds.teff_error.values == 50).all()


@pytest.mark.parametrize(
    "cluster",
    [
        ["M_67", "M 67", "", "nan", "None", "field", "-1", " ", "M67"],
        [5, 5, -1, -9999, -1, -1, -1, -1, 7],
        [5.0, 5.0, np.nan, -1, np.nan, -9999.99, np.nan, np.nan, 7.0],
        [b"NGC_1", b"NGC_1", b"", b"null", b"--", b"-", b"NONE", b"NaN", b"x"],
    ],
)
def test_clusters_and_field(tmp_path, cluster):
    values = np.array([*cluster, *cluster[2:5]])
    got = list(store(tmp_path, cluster=values).cluster.values)
    assert got[0] == got[1] != "" and got[8] not in ("", got[0]) and set(got[2:8]) | set(got[9:]) == {""}


def test_visits_as_dates(tmp_path):
    ds = store(tmp_path, visits=np.array([["55000", "55001"], ["55000", ""]] * (N // 2)))
    assert list(ds.visits.values[:2]) == ["55000,55001", "55000"]
    (tmp_path / "again").mkdir()
    ds = store(tmp_path / "again", visits=np.where(np.arange(N) == 1, np.nan, 55000.0))
    assert list(ds.visits.values[:2]) == ["55000", ""]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"wavelength": np.linspace(5500, 5000, P)}, "decreases.*"),
        ({"wavelength": np.repeat(np.linspace(5000, 5500, P // 2), 2)}, "repeats a value at pixel 1"),
        ({"wavelength": np.linspace(5000, 5010, P).astype("f2")}, "repeats a value"),
        ({"wavelength": np.r_[np.linspace(5000, 5500, P - 1), 5001]}, f"goes back at pixel {P - 1}"),
        ({"wavelength": np.r_[np.nan, np.linspace(5000, 5500, P - 1)]}, "not finite at pixel 0"),
        ({"wavelength": np.linspace(4.17, 4.19, P)}, "not in Angstrom"),
        ({"wavelength": np.linspace(1.5, 1.7, P)}, "not in Angstrom"),
        ({"wavelength": np.array(["a"] * P)}, "wavelength has shape"),
        ({"wavelength": np.linspace(5000, 5500, P + 1)}, "wavelength has shape"),
        ({"wavelength": None}, "no array 'wavelength'"),
        ({"flux": arrays()["flux"].T, "error": arrays()["error"].T}, "pixels come first"),
        ({"flux": arrays()["flux"][0]}, "expected .stars, pixels."),
        ({"flux": arrays()["flux"].astype(str)}, "expected numbers"),
        ({"flux": arrays()["flux"] + 1j}, "expected numbers"),
        ({"flux": np.full((N, P), np.nan)}, "none of 12 inputs"),
        ({"error": None}, "neither 'ivar' nor 'error'"),
        ({"error": np.full(P, 0.02)}, "error has shape"),
        ({"mask": np.full((N, P), "no")}, "mask holds"),
        ({"star_id": np.array(IDS[:-1])}, "11 identifiers for 12 stars"),
        ({"teff": np.arange(3)}, "teff has shape"),
        ({"teff": np.array(["hot"] * N)}, "expected numbers"),
        ({"abundance": np.zeros((N, 3))}, "abundance without element"),
        ({"abundance": np.zeros((N, 3)), "element": np.array(["Fe"])}, "abundance has shape"),
    ],
)
def test_errors_say_what_and_how(tmp_path, changes, reason):
    with pytest.raises(ChemscaleError, match=reason) as caught:
        store(tmp_path, **changes)
    assert caught.value.remedy
    assert not (tmp_path / "s.zarr").exists()


def test_ivar_counts_before_error_and_names_in_any_case(tmp_path):
    ds = store(tmp_path, FLUX=arrays()["flux"], flux=None, ivar=np.full((N, P), 1e4))
    np.testing.assert_array_equal(ds.ivar.values, np.float32(1e4))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressed", [False, True])
def test_big_archives_are_read_by_rows(tmp_path, compressed, order):
    """Values right, in every order of rows; memory of a few rows (Fortran order compressed: of the array)."""
    n, p = 3000, 1500
    flux = np.asarray(np.arange(n * p, dtype="f4").reshape(n, p) % 997 / 997 + 0.5, order=order)
    data = {"flux": flux, "error": np.full((n, p), 0.5, "f4"), "wavelength": np.linspace(5000, 6000, p)}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "big.npz", **data)
    source = TableSource(str(tmp_path / "big.npz"))
    plan = source.plan()
    source.read(plan.items[:2], plan.wavelength, ())
    tracemalloc.start()
    for rows in (range(1000, 1032), range(40, 72), [2999, 5, 5 + 1, 0], range(1500, 1532)):
        items = [plan.items[i] for i in rows]
        np.testing.assert_array_equal(source.read(items, plan.wavelength, ()).flux, flux[list(rows)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (flux.nbytes * 1.5 if compressed and order == "F" else 6 * 2**20)
