"""Labels and pixels belong to the same observation, or the star is refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from releases import write_allstar, write_aspcap

from chemscale.errors import InputError
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.sources.apogee_pixels import CHIPS, N_PIXELS
from chemscale.survey.sources.sdss_v import SdssVSource

STAR = "2M00000000+0000000"
INSIDE = np.zeros(N_PIXELS, bool)
for _a, _b in CHIPS:
    INSIDE[_a:_b] = True


def allstar(path, telescopes=("apo25m", "lco25m"), fields=("F1", "F2"), snr=(25.0, 200.0), **more):
    n = len(telescopes)
    columns = {"APOGEE_ID": [STAR] * n, "TELESCOPE": telescopes, "FIELD": fields, "SNR": np.array(snr, "f4")}
    Table(columns | {"TEFF": np.array([4500, 4800][-n:], "f4")} | more).write(path)
    return str(path)


def labels_of(source):
    plan = source.plan()
    block = source.read(plan.items, plan.wavelength, plan.elements)
    return plan, {i: float(t) for i, t in zip(block.star_id, block.labels["teff"])}, block


def test_folders_of_one_telescope_each_keep_their_own_labels(tmp_path):
    write_aspcap(tmp_path / "t/apo25m/F1" / f"aspcapStar-dr17-{STAR}.fits", STAR, snr=25.0, table=False)
    write_aspcap(tmp_path / "t/lco25m/F2" / f"aspcapStar-dr17-{STAR}.fits", STAR, snr=200.0, table=False)
    catalogue = allstar(tmp_path / "allStar.fits")
    for roots in ([tmp_path / "t"], [tmp_path / "t/apo25m", tmp_path / "t/lco25m"]):
        plan, teff, _ = labels_of(ApogeeSource([str(r) for r in roots], catalogue))
        assert teff == {STAR: 4800.0} and "lco25m" in plan.items[0].path
    plan, teff, _ = labels_of(ApogeeSource(str(tmp_path / "t/apo25m"), catalogue))
    assert teff == {STAR: 4500.0}


def test_folders_by_location_id_agree_by_it(tmp_path):
    write_aspcap(tmp_path / "t/4100" / f"aspcapStar-r8-l31c.2-{STAR}.fits", STAR, table=False)
    catalogue = allstar(tmp_path / "allStar.fits", ("apo25m", "apo25m"), LOCATION_ID=[4100, 4200])
    assert labels_of(ApogeeSource(str(tmp_path / "t"), catalogue))[1] == {STAR: 4500.0}


def apstar(path, snr):
    units = [fits.PrimaryHDU()]
    units[0].header.update({"OBJID": STAR, "SNR": snr})
    for data in (np.where(INSIDE, 1000.0, 0), np.where(INSIDE, 10.0, 1e10), np.zeros(N_PIXELS, "i2")):
        unit = fits.ImageHDU(data)
        unit.header.update({"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1})
        units.append(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(units).writeto(path)


def test_a_flat_folder_tells_telescopes_by_the_prefix(tmp_path):
    apstar(tmp_path / "f" / f"apStar-dr17-{STAR}.fits", 25.0)
    catalogue = allstar(tmp_path / "allStar.fits")
    assert labels_of(ApogeeSource(str(tmp_path / "f"), catalogue, product="apStar"))[1] == {STAR: 4500.0}
    apstar(tmp_path / "f" / f"asStar-dr17-{STAR}.fits", 200.0)
    plan, teff, _ = labels_of(ApogeeSource(str(tmp_path / "f"), catalogue, product="apStar"))
    assert teff == {STAR: 4800.0} and "asStar" in plan.items[0].path


def test_a_flat_file_belongs_to_the_row_of_its_signal_to_noise(tmp_path):
    write_aspcap(tmp_path / "f" / f"aspcapStar-dr17-{STAR}.fits", STAR, snr=25.1, table=False)
    assert labels_of(ApogeeSource(str(tmp_path / "f"), allstar(tmp_path / "a.fits")))[1] == {STAR: 4500.0}


def test_where_nothing_says_which_row_it_is_the_star_is_refused(tmp_path):
    write_aspcap(tmp_path / "f" / f"aspcapStar-dr17-{STAR}.fits", STAR, snr=70.0, table=False)
    write_aspcap(tmp_path / "f" / "aspcapStar-dr17-2M1.fits", "2M1", table=False)
    plan = ApogeeSource(str(tmp_path / "f"), allstar(tmp_path / "a.fits")).plan()
    assert [i.star_id for i in plan.items] == ["2M1"]
    assert "allStar has 2 rows of this star" in plan.rejected[0].reason


def test_a_file_of_another_telescope_than_the_only_row_is_refused(tmp_path):
    write_aspcap(tmp_path / "t/apo25m/F1" / f"aspcapStar-dr17-{STAR}.fits", STAR, table=False)
    write_aspcap(tmp_path / "t/apo25m/F1" / "aspcapStar-dr17-2M1.fits", "2M1", table=False)
    catalogue = allstar(tmp_path / "a.fits", ("lco25m",), ("F2",), (200.0,))
    plan = ApogeeSource(str(tmp_path / "t"), catalogue).plan()
    assert [i.star_id for i in plan.items] == ["2M1"]
    assert "no row of allStar is of this telescope" in plan.rejected[0].reason


@pytest.mark.parametrize("count", [20, 26, 27])
def test_species_of_a_files_own_table_whatever_their_number(tmp_path, count):
    write_aspcap(tmp_path / f"aspcapStar-dr17-{STAR}.fits", STAR, elements=count)
    plan, _, block = labels_of(ApogeeSource(str(tmp_path)))
    assert len(plan.elements) == count
    assert block.labels["abundance"][0][plan.elements.index("Fe")] == np.float32(0.1)


def test_species_nobody_names_are_not_given_names(tmp_path):
    write_aspcap(tmp_path / f"aspcapStar-dr17-{STAR}.fits", STAR, elements=23)
    plan, _, block = labels_of(ApogeeSource(str(tmp_path)))
    assert plan.elements == () and "abundance" not in plan.labels and "abundance" not in block.labels
    assert "X_H (its species are not named)" in plan.attrs["ignored"]


# ---------------------------------------------------------------- SDSS-V


def mwm_star(path, star, telescopes, product="mwmStar", snr=100.0):
    def table(name, rows):
        n = len(rows)
        columns = [fits.Column("sdss_id", "K", array=[star] * n), fits.Column("telescope", "6A", array=rows)]
        columns += [fits.Column("snr", "E", array=[snr + i for i in range(n)])]
        columns += [fits.Column("mjd", "J", array=[60000 + i for i in range(n)])]
        for name_of, value in (("flux", 50.0), ("ivar", 4.0), ("pixel_flags", 0.0), ("continuum", 50.0)):
            data = np.tile(np.where(INSIDE, value, 0 if name_of == "ivar" else value), (n, 1)).astype("f4")
            columns.append(fits.Column(name_of, f"{N_PIXELS if n else 0}E", array=data if n else None))
        unit = fits.BinTableHDU.from_columns(columns, name=name)
        unit.header.update({"CRVAL": 4.179, "CDELT": 6e-6, "NPIXELS": N_PIXELS})
        return unit

    primary = fits.PrimaryHDU()
    primary.header["SDSS_ID"] = star
    apo, lco = ([t for t in telescopes if t.startswith(o)] for o in ("apo", "lco"))
    names = ("BOSS/APO", "BOSS/LCO", "APOGEE/APO", "APOGEE/LCO")
    path.mkdir(parents=True, exist_ok=True)
    units = [primary, *(table(n, r) for n, r in zip(names, ([], [], apo, lco)))]
    fits.HDUList(units).writeto(path / f"{product}-0.6.0-{star}.fits")


def summary(path, rows):
    table = Table(rows=rows, names=("sdss_id", "telescope", "snr", "teff"), dtype=("i8", "U6", "f4", "f4"))
    empty = fits.table_to_hdu(Table({"sdss_id": np.array([], int)}))
    fits.HDUList([fits.PrimaryHDU(), empty, fits.table_to_hdu(table)]).writeto(path)
    return str(path)


def test_of_several_rows_of_a_source_that_of_the_spectrums_telescope_counts(tmp_path):
    mwm_star(tmp_path / "s", 54, ["lco25m"])
    mwm_star(tmp_path / "s", 55, ["apo25m"])
    rows = [(54, "apo25m", 300.0, 4000.0), (54, "lco25m", 100.0, 5000.0), (55, "lco25m", 9.0, 1.0)]
    _plan, teff, block = labels_of(SdssVSource(str(tmp_path / "s"), summary(tmp_path / "c.fits", rows)))
    assert teff == {"54": 5000.0}
    assert "the catalogue's row is of lco25m" in block.rejected[0].reason


def test_where_neither_telescope_nor_signal_says_which_row_the_source_is_refused(tmp_path):
    mwm_star(tmp_path / "s", 54, ["apo25m"])
    mwm_star(tmp_path / "s", 55, ["apo25m"])
    rows = [(54, "apo25m", 30.0, 4000.0), (54, "apo25m", 40.0, 5000.0), (55, "apo25m", 99.0, 6000.0)]
    plan, teff, _ = labels_of(SdssVSource(str(tmp_path / "s"), summary(tmp_path / "c.fits", rows)))
    assert teff == {"55": 6000.0} and "2 rows of this source" in plan.rejected[0].reason


def test_visits_are_stars_of_their_own(tmp_path):
    mwm_star(tmp_path / "s", 54, ["apo25m", "apo25m", "lco25m"], product="mwmVisit")
    plan = SdssVSource(str(tmp_path / "s"), product="mwmVisit").plan()
    block = SdssVSource(str(tmp_path / "s"), product="mwmVisit").read(plan.items, plan.wavelength, ())
    assert block.star_id == ["54-apo25m-60000", "54-apo25m-60001", "54-lco25m-60000"]
    assert abs(np.median(block.flux[block.ivar > 0]) - 1) < 1e-6


def test_results_files_beside_the_spectra_are_left_aside(tmp_path):
    mwm_star(tmp_path / "t" / "spectra", 54, ["apo25m"])
    mwm_star(tmp_path / "t" / "results", 54, ["apo25m"], product="astraStarASPCAP")
    plan = SdssVSource(str(tmp_path / "t")).plan()
    assert len(plan.items) == 1 and not plan.rejected and "spectra" in plan.items[0].path


def test_a_flat_folder_joins_the_row_only_where_the_sn_agrees(tmp_path):
    """One row, one file, no telescope and no field: the S/N of the file is all that tells two observations apart."""
    write_aspcap(tmp_path / "f" / "aspcapStar-r12-2M1.fits", "2M1", snr=100.0)
    write_aspcap(tmp_path / "f" / "aspcapStar-r12-2M2.fits", "2M2", snr=40.0)
    rows = [{"APOGEE_ID": s, "SNR": 99.0, "TELESCOPE": "lco25m", "FIELD": "X"} for s in ("2M1", "2M2")]
    write_allstar(tmp_path / "allStar.fits", rows)
    source = ApogeeSource(str(tmp_path / "f"), allstar=str(tmp_path / "allStar.fits"))
    plan = source.plan()
    block = source.read(plan.items, plan.wavelength, plan.elements)
    assert block.star_id == ["2M1"]
    assert "S/N 40 is not the 99 of its row in allStar" in block.rejected[0].reason


@pytest.mark.parametrize(
    ("name", "product", "said"),
    [
        ("apVisit-r13-5095-55844-128.fits", "aspcapStar", "single visit"),
        ("apStar-r13-2M1.fits", "aspcapStar", "--product apStar"),
        ("aspcapStar-r13-2M1.fits", "apStar", "leave out --product"),
    ],
)
def test_other_files_of_apogee_are_named_with_what_to_do(tmp_path, name, product, said):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as error:
        ApogeeSource(str(tmp_path), product=product).plan()
    assert said in error.value.remedy
