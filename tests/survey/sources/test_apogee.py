"""APOGEE: real files, both allStar layouts, members, duplicates, and everything that can be wrong."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from releases import aspcap_arrays, write_allstar, write_aspcap

from chemscale import open_survey
from chemscale.errors import InputError
from chemscale.schema import APOGEE_ELEMENTS, Flag
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.ingest.repair import repair
from chemscale.survey.sources import apogee_labels
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.sources.apogee_labels import DR17_ELEMENTS, visit_means
from chemscale.survey.sources.apogee_pixels import CHIPS, N_PIXELS, wavelength_grid
from chemscale.survey.sources.base import Source
from chemscale.survey.sources.file_names import APOGEE


def read_all(source):
    plan = source.plan()
    return plan, source.read(plan.items, plan.wavelength, plan.elements)


def reasons(rejected):
    return {r.star_id: r.reason for r in rejected}


def test_real_aspcap_files(shared_data):
    source = ApogeeSource(str(shared_data / "apogee" / "aspcapStar"))
    assert isinstance(source, Source)
    plan, block = read_all(source)
    assert len(plan.items) == 18 and not plan.rejected and not block.rejected
    assert block.flux.shape == (18, N_PIXELS) and block.flux.dtype == np.float32
    for row, star in enumerate(block.star_id):
        path = shared_data / "apogee" / "aspcapStar" / f"aspcapStar-r6-l30e.2-{star}.fits"
        with fits.open(path) as reference:
            flux, error = reference[1].data, reference[2].data
            table = reference[4].data[0]
        np.testing.assert_array_equal(block.flux[row], flux.astype("f4"))
        used = (block.ivar[row] > 0) & (block.flags[row] == 0)
        np.testing.assert_allclose(block.ivar[row][used], 1 / error[used].astype(float) ** 2, rtol=1e-6)
        assert not used[flux == 0].any() and used.sum() > 6000
        assert np.sum(block.flags[row] & Flag.GAP > 0) == N_PIXELS - sum(b - a for a, b in CHIPS) == 1061
        assert block.labels["snr"][row] == np.float32(table["SNR"])
        assert block.labels["quality"][row] == table["ASPCAPFLAG"]
        teff = table["PARAM"][0]
        assert np.isnan(block.labels["teff"][row]) if teff < 0 else block.labels["teff"][row] == np.float32(teff)
        assert np.all(np.isnan(block.labels["abundance"][row, 22:]))  # DR13 orders these otherwise
    assert np.isfinite(block.labels["teff"]).sum() == 3
    assert not any(np.any(v[np.isfinite(v)] < -900) for v in block.labels.values() if v.dtype.kind == "f")


def test_real_apstar_files(shared_data):
    _, block = read_all(ApogeeSource(str(shared_data / "apogee" / "apStar"), product="apStar"))
    assert len(block.star_id) == 4 and not block.rejected
    for row, star in enumerate(block.star_id):
        with fits.open(shared_data / "apogee" / "apStar" / f"apStar-r6-{star}.fits") as reference:
            mask = np.atleast_2d(reference[3].data)[0]
        used = (block.ivar[row] > 0) & (block.flags[row] == 0)
        assert 0.9 < np.median(block.flux[row][used]) < 1.05
        assert used.sum() > 6000
        assert not used[(mask & 0b1_0000_0000_1111) != 0].any()
    with pytest.raises(InputError, match="no aspcapStar files"):
        ApogeeSource(str(shared_data / "apogee" / "apStar")).plan()


def test_real_catalogues_meet(shared_data, tmp_path):
    """360 real allStar rows x the real OCCAM table: four stars in common, probabilities as published."""
    table = fits.getdata(shared_data / "catalogues" / "allStar-r12-l33-rows.fits")
    pattern = write_aspcap(tmp_path / "pattern", "2M00000000+0000000").read_bytes()
    for row in table:
        path = tmp_path / row["TELESCOPE"] / row["FIELD"] / f"aspcapStar-r12-{row['APOGEE_ID']}.fits"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pattern.replace(b"2M00000000+0000000", row["APOGEE_ID"].encode()))
    arguments = [str(shared_data / "catalogues" / n) for n in ("allStar-r12-l33-rows.fits", "occam_member-DR16.fits")]
    plan, block = read_all(ApogeeSource(str(tmp_path), *arguments))
    assert len(block.star_id) == 360 and not block.rejected
    members = fits.getdata(shared_data / "catalogues" / "occam_member-DR16.fits")
    sure = {i: c for i, c, p in zip(members["APOGEE_ID"], members["CLUSTER"], members["CG_PROB"]) if p > 0.8}
    known = dict(zip(block.star_id, block.labels["cluster"]))
    assert {s: c for s, c in known.items() if c} == {s: c for s, c in sure.items() if s in known}
    missing = [r for r in plan.rejected if "not in allStar" in r.reason]
    assert len(missing) == len(sure.keys() - known.keys()) > 1000
    everyone = ApogeeSource(str(tmp_path), *arguments, min_probability=-1.0)
    assert sum(bool(i.labels["cluster"]) for i in everyone.plan().items) >= sum(bool(c) for c in known.values())
    by_id = {row["APOGEE_ID"]: row for row in table}
    for star, teff, x_h, visits, ak in zip(
        block.star_id, *(block.labels[k] for k in ("teff", "abundance", "visits", "extinction"))
    ):
        row = by_id[star]
        assert teff == row["TEFF"] or (np.isnan(teff) and row["TEFF"] < 0)
        np.testing.assert_array_equal(x_h, np.where(row["X_H"] < -900, np.nan, row["X_H"]))
        assert visits == row["VISITS"] and (ak == row["AK_TARG"] or np.isnan(ak))


def test_dr17_layout(tmp_path):
    """20 abundances, a 64-bit ASPCAPFLAG, NaN for missing, no VISITS."""
    write_aspcap(tmp_path / "apo25m" / "M67" / "aspcapStar-dr17-2M1.fits", "2M1", elements=20)
    row = {"APOGEE_ID": "2M1", "ASPCAPFLAG": 2**41 + 2**23, "TEFF": np.nan, "X_H": np.arange(20.0)}
    allstar = write_allstar(tmp_path / "allStar-dr17-synspec_rev1.fits", [row], elements=20)
    plan, block = read_all(ApogeeSource(str(tmp_path), str(allstar)))
    assert plan.elements == DR17_ELEMENTS and len(DR17_ELEMENTS) == 20 and DR17_ELEMENTS[-1] == "Ce"
    assert block.labels["quality"][0] == 2**41 + 2**23
    assert np.isnan(block.labels["teff"][0]) and "visits" not in block.labels
    assert block.labels["abundance"][0].tolist() == list(range(20))
    plan, block = read_all(ApogeeSource(str(tmp_path)))
    assert plan.elements == DR17_ELEMENTS and block.labels["abundance"].shape == (1, 20)


def test_element_symbols_of_the_file_count(tmp_path):
    write_aspcap(tmp_path / "aspcapStar-r12-2M1.fits", "2M1")
    symbols = list(reversed(APOGEE_ELEMENTS))
    allstar = write_allstar(tmp_path / "allStar.fits", [{"APOGEE_ID": "2M1"}], symbols=symbols)
    assert ApogeeSource(str(tmp_path), str(allstar)).plan().elements == tuple(symbols)


def test_duplicates_keep_the_best(tmp_path):
    good = write_aspcap(tmp_path / "apo25m" / "B" / "aspcapStar-r12-2M1.fits", "2M1", snr=200)
    poor = write_aspcap(tmp_path / "apo25m" / "A" / "aspcapStar-r12-2M1.fits", "2M1", snr=90)
    rows = [
        {"APOGEE_ID": "2M1", "FIELD": "A", "SNR": 90.0, "TEFF": 4100.0},
        {"APOGEE_ID": "2M1", "FIELD": "B", "SNR": 200.0, "TEFF": 4200.0},
        {"APOGEE_ID": "2M1", "FIELD": "C", "SNR": 300.0, "TEFF": 4300.0},  # its spectrum is not there
    ]
    allstar = write_allstar(tmp_path / "allStar.fits", rows)
    for source in (ApogeeSource(str(tmp_path), str(allstar)), ApogeeSource(str(tmp_path))):
        plan, block = read_all(source)
        assert [i.path for i in plan.items] == [str(good)]
        assert [r.path for r in plan.rejected] == [str(poor)] and "duplicate" in plan.rejected[0].reason
    plan, block = read_all(ApogeeSource(str(tmp_path), str(allstar)))
    assert block.labels["teff"].tolist() == [4200.0] and block.labels["snr"].tolist() == [200.0]


def test_members_not_in_the_survey_are_listed(tmp_path):
    write_aspcap(tmp_path / "s" / "aspcapStar-r12-2M1.fits", "2M1")
    allstar = write_allstar(tmp_path / "allStar.fits", [{"APOGEE_ID": "2M1"}, {"APOGEE_ID": "2M2"}])
    members = tmp_path / "members.csv"
    members.write_text("ID,Group,P\n2M1,NGC_188,0.9\n2M1,NGC 188,0.99\n2M2,M 67,0.95\n2M3,M 67,0.99\n2M4,M 67,0.5\n")
    source = ApogeeSource(
        str(tmp_path / "s"),
        str(allstar),
        str(members),
        member_key="id",
        member_column="group",
        probability_column="P",
        min_probability=0.8,
    )
    plan, block = read_all(source)
    assert block.labels["cluster"].tolist() == ["NGC 188"]
    assert block.labels["cluster_probability"][0] == np.float32(0.99)
    assert reasons(plan.rejected) == {
        "2M2": "member of M 67 in the membership table, but without a spectrum",
        "2M3": "member of M 67 in the membership table, but not in allStar",
    }
    noted = {"rows": 5, "below_minimum": 1, "min_probability": 0.8, "repeated": 1, "probability_column": "P"}
    assert plan.attrs["membership"] == noted
    with pytest.raises(InputError, match="it has ID, Group, P"):
        ApogeeSource(str(tmp_path / "s"), members=str(members)).plan()


def test_wrong_files_are_rejected_with_the_reason(tmp_path):
    flux, error = aspcap_arrays()

    def write(star, **wrong):
        return write_aspcap(tmp_path / f"aspcapStar-r12-{star}.fits", star, **wrong)

    write("good")
    whole = write("truncated").read_bytes()
    (tmp_path / "aspcapStar-r12-truncated.fits").write_bytes(whole[:20_000])
    write("grid", header={"CRVAL1": 4.18})
    write("step", header={"CDELT1": 6.01e-6})
    write("gridless", header={"CRVAL1": None, "CDELT1": None})
    write("short", flux=flux[:8000], error=error[:8000])
    write("nan", flux=np.full(N_PIXELS, np.nan, ">f4"))
    write("zero", flux=np.zeros(N_PIXELS, ">f4"))
    write("bad", error=np.full(N_PIXELS, 1e10, ">f4"))
    write("integers", flux=np.ones(N_PIXELS, ">i4"))
    write("cube", flux=np.ones((2, 2, N_PIXELS), ">f4"))
    (tmp_path / "aspcapStar-r12-empty.fits").write_bytes(b"")
    (tmp_path / "aspcapStar-r12-text.fits").write_bytes(b"not a spectrum" * 500)
    (tmp_path / "aspcapStar-r12-gone.fits").symlink_to(tmp_path / "nowhere")
    write_aspcap(tmp_path / "aspcapStar-r12-renamed.fits", "2M-somebody-else")
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "aspcapStar-r12-nodata.fits")
    plan, block = read_all(ApogeeSource(str(tmp_path)))
    assert block.star_id == ["good"] and block.flux.shape == (1, N_PIXELS)
    assert [r.reason for r in plan.rejected] == ["broken or circular symbolic link"]
    found = reasons(block.rejected)
    expected = {
        "truncated": "header declares 34300 bytes of data, the file has",
        "grid": "another wavelength grid: CRVAL1 4.18",
        "step": "another wavelength grid",
        "gridless": "another wavelength grid: CRVAL1 nan",
        "short": "shape (8000,), expected 8575 pixels",
        "nan": "flux is not finite in any pixel",
        "zero": "flux is 0 in every pixel",
        "bad": "no pixel has both a flux and a valid error",
        "integers": "BITPIX 32, expected floats",
        "cube": "shape (2, 2, 8575)",
        "empty": "file is empty",
        "text": "not a FITS file",
        "renamed": "file name says 'renamed', its OBJ keyword says '2M-somebody-else'",
        "nodata": "file has 1 HDUs",
    }
    assert found.keys() == expected.keys()
    for star, reason in expected.items():
        assert reason in found[star], star


def test_pixels(tmp_path):
    flux, error = aspcap_arrays()
    flux[600], flux[601], error[602], error[603], flux[604] = np.nan, 1e38, 0.0, np.nan, np.inf
    write_aspcap(tmp_path / "aspcapStar-r12-2M1.fits", "2M1", flux=flux, error=error)
    _, block = read_all(ApogeeSource(str(tmp_path)))
    flags, ivar = block.flags[0], block.ivar[0]
    assert np.all(flags[[500, 502, 601]] == Flag.SURVEY_BAD)
    assert np.all(ivar[[500, 502, 601, 602, 603]] == 0)
    assert ivar[501] == pytest.approx(25, rel=1e-6) and flags[501] == 0  # a large error is for quality.pixels to judge
    assert np.all(flags[:246] == Flag.GAP) and np.all(ivar[:246] == 0)
    assert np.all(np.isfinite(ivar))
    np.testing.assert_allclose(ivar[700:710], 1e4, rtol=1e-6)


def test_items_travel_alone(tmp_path):
    write_aspcap(tmp_path / "aspcapStar-r12-2M1.fits", "2M1")
    rows = [{"APOGEE_ID": "2M1"}] + [{"APOGEE_ID": f"2X{i}"} for i in range(2000)]
    source = ApogeeSource(str(tmp_path), str(write_allstar(tmp_path / "allStar.fits", rows)))
    plan = source.plan()
    packed = pickle.dumps((source, plan.items))
    assert len(packed) < 3000
    source_there, items_there = pickle.loads(packed)
    one = source.read(plan.items, plan.wavelength, plan.elements)
    two = source_there.read(items_there, plan.wavelength, plan.elements)
    np.testing.assert_array_equal(one.flux, two.flux)
    for name, values in one.labels.items():
        np.testing.assert_array_equal(values, two.labels[name])
    assert plan.attrs["allstar_without_spectrum"] == 2000


def test_rows_do_not_depend_on_the_block(tmp_path):
    for i in range(7):
        write_aspcap(tmp_path / f"aspcapStar-r12-2M{i}.fits", f"2M{i}", seed=i)
    source = ApogeeSource(str(tmp_path))
    plan, whole = read_all(source)
    for i, item in enumerate(plan.items):
        one = source.read([item], plan.wavelength, plan.elements)
        np.testing.assert_array_equal(one.flux[0], whole.flux[i])
        np.testing.assert_array_equal(one.flags[0], whole.flags[i])
    nothing = source.read([], plan.wavelength, plan.elements)
    assert nothing.flux.shape == (0, N_PIXELS)


def test_wrong_arguments(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        ApogeeSource(str(tmp_path / "none")).plan()
    with pytest.raises(InputError, match="no aspcapStar files"):
        ApogeeSource(str(tmp_path)).plan()
    with pytest.raises(InputError, match="product"):
        ApogeeSource(str(tmp_path), product="apVisit")
    path = write_aspcap(tmp_path / "aspcapStar-r12-2M1.fits", "2M1")
    with pytest.raises(InputError, match="not APOGEE's"):
        ApogeeSource(str(tmp_path)).read([], wavelength_grid()[:-1], ())
    with pytest.raises(InputError, match=r"no APOGEE_ID|holds no table"):
        ApogeeSource(str(tmp_path), str(path)).plan()
    (tmp_path / "text.fits").write_text("nothing")
    with pytest.raises(InputError, match=r"text\.fits"):
        ApogeeSource(str(tmp_path), str(tmp_path / "text.fits")).plan()


def test_a_unit_that_cannot_be_read_asks_for_a_corrected_file_not_for_a_mapping(tmp_path):
    write_aspcap(tmp_path / "aspcapStar-r12-2M1.fits", "2M1")
    path = write_allstar(tmp_path / "allStar.fits", [{"APOGEE_ID": "2M1"}])
    with fits.open(path, mode="update") as units:
        units[1].header.set("TUNIT5", "furlong")  # TEFF
    with pytest.raises(InputError, match="teff is in 'furlong', which cannot be turned into K") as told:
        ApogeeSource(str(tmp_path), str(path)).plan()
    assert "correct the unit" in told.value.remedy and "mapping" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "star"),
    [
        ("aspcapStar-r6-l30e.2-2M00452143+1634446.fits", "2M00452143+1634446"),
        ("aspcapStar-r12-2M00035348-0051516.fits", "2M00035348-0051516"),
        ("aspcapStar-dr17-AP17225293-2447245.fits.gz", "AP17225293-2447245"),
        ("apStar-r6-2M03290406+3117075.fits", "2M03290406+3117075"),
        ("asStar-r12-2M03290406-3117075.fits", "2M03290406-3117075"),
        ("apStar-1.2-apo25m-2M05560393-0133549.fits", "2M05560393-0133549"),
        ("aspcapStar-r12-VESTA.fits", "VESTA"),
        ("aspcapStar-r12-.fits", ""),
        ("aspcapStar.fits", ""),
    ],
)
def test_names(name, star):
    match = APOGEE.match(name)
    assert (match["id"] if match else "") == star


def test_date_and_fibre_are_means_over_visits_where_the_text_tells_them():
    found = visit_means(
        ["r12-5213-55862-123,r12-5213-55864-125", "apogee-4424-56001-7", "", "55862,55864", "r12-1-2-3"]
    )
    np.testing.assert_array_equal(found["mjd"], [55863, 56001, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(found["fibre"], np.array([124, 7, np.nan, np.nan, np.nan], "f4"))


def test_a_store_of_a_release_that_knew_fewer_labels_is_repaired(tmp_path, monkeypatch):
    write_aspcap(tmp_path / "in" / "aspcapStar-r12-2M1.fits", "2M1")
    allstar = write_allstar(tmp_path / "allStar.fits", [{"APOGEE_ID": "2M1"}])
    table = Table.read(allstar, hdu=1)
    table["GAIAEDR3_SOURCE_ID"] = [2**60 + 1]
    table.write(allstar, overwrite=True)
    source = ApogeeSource(str(tmp_path / "in"), str(allstar))
    with monkeypatch.context() as older:
        older.setattr(apogee_labels, "_GAIA", ())
        ingest(source, tmp_path / "s.zarr", progress=False)
    assert "gaia_source_id" in source.plan().labels
    flux = open_survey(tmp_path / "s.zarr")["flux"].values
    shard = next((tmp_path / "s.zarr" / "flux" / "c").rglob("0"))
    shard = shard if shard.is_file() else next(p for p in shard.rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    assert repair(tmp_path / "s.zarr").ok
    np.testing.assert_array_equal(open_survey(tmp_path / "s.zarr")["flux"].values, flux)
    assert "gaia_source_id" not in open_survey(tmp_path / "s.zarr").variables


def test_an_ingest_of_files_starts_without_what_it_does_not_need(tmp_path):
    write_aspcap(tmp_path / "aspcapStar-r12-2M00000001.fits", "2M00000001")
    program = (
        "import sys, chemscale\n"
        "from chemscale.survey.sources.apogee import ApogeeSource\n"
        "chemscale.ingest(ApogeeSource(sys.argv[1]), sys.argv[1] + '/s.zarr', progress=False)\n"
        "print([m for m in ('xarray', 'pandas', 'pyarrow', 'astropy', 'dask', 'distributed') if m in sys.modules])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_survey_has_its_accessor_however_it_was_made(tmp_path):
    write_aspcap(tmp_path / "aspcapStar-r12-2M00000001.fits", "2M00000001")
    ingest(ApogeeSource(str(tmp_path)), tmp_path / "s.zarr", progress=False)
    program = "import sys, chemscale; print(chemscale.open_survey(sys.argv[1]).chemscale._title())"
    command = [sys.executable, "-c", program, str(tmp_path / "s.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "survey APOGEE", done.stderr
