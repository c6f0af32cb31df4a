"""LAMOST: every real file, the three layouts, the rest frame, flags, labels, members, damage."""

from __future__ import annotations

import numpy as np
import pytest
from releases import lamost_arrays, write_lamost

from chemscale.catalogues.units import SPEED_OF_LIGHT
from chemscale.errors import InputError
from chemscale.schema import Flag
from chemscale.survey.sources.base import Source
from chemscale.survey.sources.lamost import LamostSource


def read_all(source):
    plan = source.plan()
    return plan, source.read(plan.items, plan.wavelength, plan.elements)


def test_every_real_file(shared_data):
    source = LamostSource(
        [str(shared_data / d) for d in ("lamost_dr10/spectra", "lamost_repeats/spectra", "lamost_dr1")],
        [str(shared_data / "lamost_dr10" / "labels.csv")],
        str(shared_data / "lamost_repeats" / "groups.csv"),
    )
    assert isinstance(source, Source)
    plan, block = read_all(source)
    assert len(plan.items) == 900 + 109 + 10 and not plan.rejected and not block.rejected
    assert plan.medium == "vacuum" and 3999 < plan.wavelength[0] < 4001 and 8899 < plan.wavelength[-1] < 8901
    np.testing.assert_allclose(np.diff(np.log10(plan.wavelength)), 1e-4, rtol=1e-9)
    assert len(set(block.star_id)) == 1019
    clusters, counts = np.unique(block.labels["cluster"], return_counts=True)
    assert len(clusters) == 51 and counts[clusters == ""] == 910 and counts.min() >= 2
    used = (block.flags == 0) & (block.ivar > 0)
    assert used.mean() > 0.8 and np.all(np.isfinite(block.flux)) and np.all(np.isfinite(block.ivar))
    assert 0.95 < np.median(block.flux[used]) < 1.0
    assert np.isfinite(block.labels["teff"]).sum() == 900
    assert np.all(np.isfinite(block.labels["snr"])) and np.all(np.abs(block.labels["radial_velocity"]) < 700)
    assert np.all(block.labels["spectral_class"] != "")


def test_repeats_agree_to_within_their_errors(shared_data):
    """Two nights of one star are the same spectrum: the errors, propagated through rebinning
    and normalisation, must say so."""
    source = LamostSource(
        str(shared_data / "lamost_repeats/spectra"), members=str(shared_data / "lamost_repeats/groups.csv")
    )
    _, block = read_all(source)
    pulls = []
    for name in np.unique(block.labels["cluster"]):
        a, b = np.flatnonzero(block.labels["cluster"] == name)[:2]
        good = (block.flags[a] == 0) & (block.flags[b] == 0) & (block.ivar[a] > 400) & (block.ivar[b] > 400)
        if good.sum() > 500:
            sigma = np.sqrt(1 / block.ivar[a][good] + 1 / block.ivar[b][good])
            pulls.append(np.median(np.abs(block.flux[a][good] - block.flux[b][good]) / sigma) / 0.6745)
    assert len(pulls) > 30
    assert 0.6 < np.median(pulls) < 2.0


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_layouts_give_the_same_spectrum(tmp_path, suffix):
    arrays = lamost_arrays()
    for layout in ("dr1", "dr8", "dr10"):
        write_lamost(tmp_path / f"spec-{layout}.fits{suffix}", layout=layout, arrays=arrays)
    _, block = read_all(LamostSource(str(tmp_path)))
    assert block.star_id == ["spec-dr1", "spec-dr10", "spec-dr8"]
    for row in (1, 2):
        np.testing.assert_allclose(block.flux[row], block.flux[0], rtol=1e-5)
        np.testing.assert_allclose(block.ivar[row], block.ivar[0], rtol=1e-5)
        np.testing.assert_array_equal(block.flags[row], block.flags[0])
    assert block.labels["snr"].tolist() == [50.0] * 3
    assert block.labels["visits"].tolist() == ["55862-P1-sp06"] * 3


def test_rest_frame(tmp_path):
    """A line at 5000 A (rest) is found there whatever the star's velocity; tellurics stay put in the sky."""
    for velocity in (-300.0, 0.0, 250.0):
        arrays = lamost_arrays(seed=1)
        redshift = velocity / SPEED_OF_LIGHT
        centre = 5000.0 * (1 + redshift)
        arrays["FLUX"] *= 1 - 0.7 * np.exp(-0.5 * ((arrays["WAVELENGTH"] - centre) / 4) ** 2)
        write_lamost(tmp_path / f"spec-{velocity:+.0f}.fits", arrays=arrays, header={"Z": redshift})
    plan, block = read_all(LamostSource(str(tmp_path)))
    near = np.abs(plan.wavelength - 5000) < 25
    for row in range(3):
        depth = 1 - block.flux[row][near]
        assert abs(np.sum(depth * plan.wavelength[near]) / np.sum(depth) - 5000) < 0.5
        velocity = block.labels["radial_velocity"][row]
        b_band = np.flatnonzero(block.flags[row] & Flag.TELLURIC)
        edge = plan.wavelength[b_band[plan.wavelength[b_band] > 6800][0]]
        assert abs(edge * (1 + velocity / SPEED_OF_LIGHT) - 6862) < 1.6
        sodium = block.flags[row] & Flag.INTERSTELLAR > 0
        assert sodium[np.abs(plan.wavelength * (1 + velocity / SPEED_OF_LIGHT) - 5891.6) < 5].all()
    assert sorted(block.labels["radial_velocity"].round().tolist()) == [-300.0, 0.0, 250.0]


def test_redshift_from_the_labels(tmp_path):
    write_lamost(tmp_path / "s" / "spec-a.fits", header={"Z": -9999.0})
    write_lamost(tmp_path / "s" / "spec-b.fits", header={"Z": None})
    write_lamost(tmp_path / "s" / "spec-c.fits", header={"Z": 0.3})
    labels = tmp_path / "labels.csv"
    labels.write_text("file,teff,feh,z,subclass\nspec-a.fits.gz,5777,-9999,0.0002,G2V\n")
    plan, block = read_all(LamostSource(str(tmp_path / "s"), [str(labels)]))
    assert block.star_id == ["spec-a"]
    assert block.labels["radial_velocity"][0] == pytest.approx(0.0002 * SPEED_OF_LIGHT)
    assert block.labels["teff"].tolist() == [5777.0] and np.isnan(block.labels["fe_h"][0])
    assert block.labels["spectral_class"].tolist() == ["G2V"]
    found = {r.star_id: r.reason for r in block.rejected}
    assert "no velocity" in found["spec-b"] and "no star's" in found["spec-c"]
    assert plan.attrs["spectra_without_labels"] == 2


def test_label_tables_join(tmp_path):
    for name in "abc":
        write_lamost(tmp_path / "s" / f"spec-{name}.fits")
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    one.write_text("# comment\nfile,TEFF,unknown\nspec-a.fits,5000,x\nspec-zzz.fits,1,1\n")
    two.write_text("file,teff,logg\nspec-b.fits,6000,4.5\nspec-a.fits,1,1\n")
    plan, block = read_all(LamostSource(str(tmp_path / "s"), [str(one), str(two)]))
    np.testing.assert_array_equal(block.labels["teff"], np.array([5000, 6000, np.nan], "f4"))
    np.testing.assert_array_equal(block.labels["logg"], np.array([1, 4.5, np.nan], "f4"))  # fills a gap
    assert plan.attrs["labels_without_spectrum"] == 1
    two.write_text("star,teff\nspec-b.fits,6000\n")
    with pytest.raises(InputError, match=r"no column names the stars; looked for file, obsid.* it has star, teff"):
        LamostSource(str(tmp_path / "s"), [str(two)]).plan()
    two.write_text("file,teff\nspec-b.fits\n")
    with pytest.raises(InputError, match="line 2: 1 fields, the header has 2"):
        LamostSource(str(tmp_path / "s"), [str(two)]).plan()


def test_species_of_a_catalogue_are_stored(tmp_path):
    write_lamost(tmp_path / "s" / "spec-a.fits")
    labels = tmp_path / "value_added.csv"
    labels.write_text("file,feh,mg_fe\nspec-a.fits,-0.4,0.2\n")
    plan, block = read_all(LamostSource(str(tmp_path / "s"), str(labels)))
    assert plan.elements == ("Fe", "Mg")
    np.testing.assert_allclose(block.labels["abundance"], [[-0.4, -0.2]], atol=1e-6)


def test_spectra_can_stay_in_the_observed_frame(tmp_path):
    write_lamost(tmp_path / "spec-a.fits", arrays=lamost_arrays(seed=1), header={"Z": 1e-3})
    write_lamost(tmp_path / "spec-b.fits", arrays=lamost_arrays(seed=1), header={"Z": -9999.0})
    plan, block = read_all(LamostSource(str(tmp_path), frame="observed"))
    np.testing.assert_array_equal(block.flux[0], block.flux[1])
    np.testing.assert_allclose(block.labels["radial_velocity"], [1e-3 * SPEED_OF_LIGHT, np.nan], rtol=1e-6)
    assert plan.attrs["frame"].startswith("observed")


def test_masks_and_gaps(tmp_path):
    arrays = lamost_arrays(n=3751)  # ends at 8776 A
    arrays["ANDMASK"][1000], arrays["ORMASK"][1100] = 1, 2
    arrays["IVAR"][1200:1210] = 0
    arrays["FLUX"][1300], arrays["FLUX"][1301], arrays["IVAR"][1302] = np.nan, 1e38, np.inf
    write_lamost(tmp_path / "spec-a.fits", arrays=arrays, header={"Z": 0.0})
    plan, block = read_all(LamostSource(str(tmp_path)))
    at = {i: np.argmin(np.abs(plan.wavelength - arrays["WAVELENGTH"][i])) for i in (1000, 1100, 1205, 1300, 1301, 1302)}
    assert block.flags[0][at[1000]] & Flag.SURVEY_BAD and block.flags[0][at[1100]] & Flag.SURVEY_BAD
    for i in (1205, 1300, 1301, 1302):
        assert block.ivar[0][at[i]] == 0 and block.flags[0][at[i]] & Flag.GAP
    beyond = plan.wavelength > 8780
    assert beyond.sum() > 50 and np.all(block.flags[0][beyond] & Flag.GAP) and not block.ivar[0][beyond].any()
    assert np.all(np.abs(block.flux) < 2)


def test_duplicates_and_members(tmp_path):
    write_lamost(tmp_path / "a" / "spec-1.fits")
    write_lamost(tmp_path / "b" / "spec-1.fits.gz")
    members = tmp_path / "groups.csv"
    members.write_text("file,group\nspec-1.fits.gz,7\nspec-2.fits.gz,7\n")
    plan, block = read_all(LamostSource([str(tmp_path / "a"), str(tmp_path / "b")], members=str(members)))
    assert block.labels["cluster"].tolist() == ["7"]
    assert ["duplicate" in r.reason for r in plan.rejected] == [True, False]
    assert plan.rejected[1].star_id == "spec-2" and "without a spectrum" in plan.rejected[1].reason


def test_survey_normalisation(tmp_path):
    write_lamost(tmp_path / "spec-new.fits", arrays=lamost_arrays(seed=3))
    write_lamost(tmp_path / "spec-old.fits", layout="dr8")
    source = LamostSource(str(tmp_path), continuum="survey")
    _, block = read_all(source)
    assert block.star_id == ["spec-new"] and "no normalised flux" in block.rejected[0].reason
    good = block.ivar[0] > 0
    assert abs(block.flux[0][good].mean() - 1) < 0.005
    np.testing.assert_allclose(1 / np.sqrt(np.median(block.ivar[0][good])), 0.02, rtol=0.4)
    with pytest.raises(InputError, match="continuum"):
        LamostSource(str(tmp_path), continuum="none")


def test_wrong_files_are_rejected_with_the_reason(tmp_path):
    arrays = lamost_arrays()

    def write(name, **options):
        return write_lamost(tmp_path / f"spec-{name}.fits", **options)

    write("good")
    whole = write("cut").read_bytes()
    (tmp_path / "spec-cut.fits").write_bytes(whole[:30_000])
    write("lengths", arrays=arrays | {"IVAR": arrays["IVAR"][:-3]})
    write("columns", arrays={k: v for k, v in arrays.items() if k != "ORMASK"})
    write("nan", arrays=arrays | {"FLUX": np.full(3909, np.nan)})
    write("noivar", arrays=arrays | {"IVAR": np.zeros(3909)})
    write("negative", arrays=arrays | {"FLUX": -arrays["FLUX"]})
    write("grid", header={"COEFF0": 3.0})
    write("air", header={"VACUUM": False})
    write("three", layout="dr8", arrays={k: v[:50] for k, v in arrays.items()})
    (tmp_path / "spec-empty.fits").write_bytes(b"")
    (tmp_path / "spec-gz.fits.gz").write_bytes(b"\x1f\x8b" + b"\1" * 100)
    _, block = read_all(LamostSource(str(tmp_path)))
    assert block.star_id == ["spec-good"]
    found = {r.star_id.removeprefix("spec-"): r.reason for r in block.rejected}
    expected = {
        "cut": "header declares",
        "lengths": "columns differ in length: {'FLUX': 3909, 'IVAR': 3906",
        "columns": "no column ORMASK",
        "nan": "flux is not finite",
        "noivar": "no pixel has both",
        "negative": "no usable pixel",
        "grid": "no LAMOST wavelength solution: COEFF0 3.0",
        "air": "in air",
        "three": "50 pixels",
        "empty": "file is empty",
        "gz": "gzip",
    }
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in found[name], name


def test_rows_do_not_depend_on_the_block(tmp_path):
    for i in range(5):
        write_lamost(tmp_path / f"spec-{i}.fits", arrays=lamost_arrays(seed=i), header={"Z": i * 1e-4})
    source = LamostSource(str(tmp_path))
    plan, whole = read_all(source)
    for i, item in enumerate(plan.items):
        one = source.read([item], plan.wavelength, ())
        np.testing.assert_allclose(one.flux[0], whole.flux[i], rtol=1e-6)
        np.testing.assert_array_equal(one.flags[0], whole.flags[i])


def test_wrong_arguments(tmp_path):
    with pytest.raises(InputError, match="no LAMOST low resolution spectra"):
        LamostSource(str(tmp_path)).plan()
    with pytest.raises(InputError, match="wavelength range"):
        LamostSource(str(tmp_path), wavelength_range=(9000, 4000))
