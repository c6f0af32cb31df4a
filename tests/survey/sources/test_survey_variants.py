"""A survey's spectra are the same however its files are packed, and however few stars there are or are read at once."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from newer_releases import desi_coadd, galah, lamost_mrs, mwm_star, mwm_table, sdss_spec, write_xp
from releases import lamost_arrays, write_allstar, write_apstar, write_aspcap, write_lamost

from chemscale.schema import Flag
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.sources.desi import DesiSource
from chemscale.survey.sources.gaia_xp import GaiaXpSource
from chemscale.survey.sources.galah import GalahSource
from chemscale.survey.sources.lamost import LamostSource
from chemscale.survey.sources.lamost_mrs import LamostMrsSource
from chemscale.survey.sources.sdss_spec import SdssSpecSource
from chemscale.survey.sources.sdss_v import SdssVSource

VELOCITIES = (60.0, -40.0, 0.0)


def aspcap(folder, n):
    stars = [f"2M0000000{i}+0000000" for i in range(n)]
    for i, star in enumerate(stars):
        write_aspcap(folder / "s" / f"aspcapStar-dr17-{star}.fits", star, seed=i)
    write_allstar(folder / "allStar.fits", [{"APOGEE_ID": star, "TEFF": 4500.0 + i} for i, star in enumerate(stars)])
    return lambda: ApogeeSource(str(folder / "s"), str(next(folder.glob("allStar.fits*"))))


def aspcap_own_labels(folder, n):
    for i in range(n):
        write_aspcap(folder / f"aspcapStar-dr17-2M0000000{i}+0000000.fits", f"2M0000000{i}+0000000", seed=i)
    return lambda: ApogeeSource(str(folder))


def apstar(visits):
    def write(folder, n):
        for i in range(n):
            star = f"2M0000000{i}+0000000"
            write_apstar(folder / f"apStar-dr17-{star}.fits", star, seed=i, visits=visits)
        return lambda: ApogeeSource(str(folder), product="apStar")

    return write


def lamost(layout):
    def write(folder, n):
        for i in range(n):
            header = {"Z": VELOCITIES[i] / 3e5}
            write_lamost(folder / f"spec-{i}.fits", layout=layout, arrays=lamost_arrays(seed=i), header=header)
        return lambda: LamostSource(str(folder))

    return write


def mrs(rows):
    def write(folder, n):
        for i in range(n):
            lamost_mrs(folder / f"med-58025-P_sp01-02{i}.fits", rows=rows, velocity=VELOCITIES[i])
        return lambda: LamostMrsSource(str(folder))

    return write


def desi(compressed):
    def write(folder, n):
        ids = 39627652591521544 + np.arange(n)
        desi_coadd(folder / "coadd-main-1.fits", ids, VELOCITIES[:n], compressed=compressed)
        Table({"TARGETID": ids, "VRAD": VELOCITIES[:n], "TEFF": 5000.0 + np.arange(n)}).write(folder / "rvtab-1.fits")
        return lambda: DesiSource(str(folder))

    return write


def boss(folder, n):
    for i in range(n):
        sdss_spec(folder / f"spec-1234-55555-004{i}.fits", velocity=VELOCITIES[i], mask=2**24)
    return lambda: SdssSpecSource(str(folder))


def galah_of(dr4):
    def write(folder, n):
        stars = [f"17041800370120{i}" for i in range(n)]
        for star, velocity in zip(stars, VELOCITIES):
            galah(folder / "s", star, velocity, dr4=dr4)
        catalogue = {"sobject_id": [int(s) for s in stars], "rv_comp_1": VELOCITIES[:n], "fe_h": [0.1] * n}
        Table(catalogue | {"Mg_fe": [0.2] * n}).write(folder / "dr4.fits")
        return lambda: GalahSource(str(folder / "s"), str(next(folder.glob("dr4.fits*"))))

    return write


def xp(form):
    def write(folder, n):
        write_xp(folder, form, n)
        return lambda: GaiaXpSource(str(folder))

    return write


def mwm_of(instrument):
    def write(folder, n):
        for i in range(n):
            units = [mwm_table(k, 1, seed=10 * i + j) for j, k in enumerate(("boss", "boss", "apogee", "apogee"))]
            mwm_star(folder / "s", 42 + i, units)
        columns = {"sdss_id": 42 + np.arange(n), "telescope": ["apo25m"] * n, "teff": 4700.0 + np.arange(n)}
        Table(columns | {"fe_h": [0.1] * n, "mg_h": [0.2] * n}).write(folder / "astraAllStarX.fits")
        return lambda: SdssVSource(str(folder / "s"), str(next(folder.glob("astra*"))), instrument=instrument)

    return write


FITS = {
    "apogee": aspcap,
    "apogee, labels of the files": aspcap_own_labels,
    "apogee, apStar of one visit": apstar(1),
    "apogee, apStar of three visits": apstar(3),
    "lamost, DR1": lamost("dr1"),
    "lamost, DR8": lamost("dr8"),
    "lamost, DR10": lamost("dr10"),
    "lamost-mrs, vectors": mrs(False),
    "lamost-mrs, a row a pixel": mrs(True),
    "desi": desi(False),
    "desi, compressed masks": desi(True),
    "boss": boss,
    "galah, DR3": galah_of(False),
    "galah, DR4": galah_of(True),
    "sdss-v, apogee": mwm_of("apogee"),
    "sdss-v, boss": mwm_of("boss"),
}
ALL = FITS | {f"gaia-xp, {form}": xp(form) for form in ("csv", "brackets", "parquet", "single")}


def read_all(source):
    source = pickle.loads(pickle.dumps(source))
    plan = source.plan()
    block = source.read(plan.items, plan.wavelength, plan.elements)
    assert not plan.rejected and not block.rejected
    return plan, block


def pack(folder: Path) -> None:
    """Gzip every FITS and CSV file below `folder` under its name with .gz."""
    for path in [*folder.rglob("*.fits"), *folder.rglob("*.csv")]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()


def assert_same(one, other, rows=slice(None)):
    """Stars `rows` of `one` are those of `other`."""
    assert one.star_id[rows] == other.star_id
    for name in ("flux", "ivar", "flags"):
        np.testing.assert_allclose(getattr(one, name)[rows], getattr(other, name), rtol=1e-6, err_msg=name)
    assert set(one.labels) == set(other.labels)
    for name in set(one.labels) - {"source_file"}:
        np.testing.assert_array_equal(one.labels[name][rows], other.labels[name], err_msg=name)


@pytest.mark.parametrize("survey", [name for name in ALL if name != "gaia-xp, parquet"])
def test_packed_files_are_read_like_plain_ones(survey, tmp_path):
    source = ALL[survey](tmp_path, 3)
    _, plain = read_all(source())
    pack(tmp_path)
    _, packed = read_all(source())
    assert_same(plain, packed)


@pytest.mark.parametrize("survey", ALL)
def test_one_star_is_read_like_one_of_many(survey, tmp_path):
    if "parquet" in survey:
        pytest.importorskip("pyarrow")
    source = ALL[survey](tmp_path / "many", 3)()
    plan, many = read_all(source)
    _, single = read_all(ALL[survey](tmp_path / "one", 1)())
    assert_same(many, single, slice(0, 1))
    for row, item in reversed(list(enumerate(plan.items))):  # and read alone, the last star first
        assert_same(many, source.read([item], plan.wavelength, plan.elements), slice(row, row + 1))


@pytest.mark.parametrize("mask_type", ["u1", "i2", "u2", "i4", "u4", "i8"])
def test_visits_and_the_type_of_a_mask_do_not_matter(tmp_path, mask_type):
    write_apstar(tmp_path / "apStar-dr17-2M00000000+0000000.fits", "2M00000000+0000000", mask_type="i2")
    write_apstar(tmp_path / "apStar-dr17-2M00000001+0000000.fits", "2M00000001+0000000", mask_type=mask_type, visits=3)
    _, block = read_all(ApogeeSource(str(tmp_path), product="apStar"))
    np.testing.assert_allclose(block.flux[1], block.flux[0], rtol=1e-6)
    np.testing.assert_array_equal(block.flags[1], block.flags[0])
    assert (block.flags[:, 400:410] & Flag.SURVEY_BAD != 0).all()
