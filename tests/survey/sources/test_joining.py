"""Labels and members from catalogues of any form, by any key, alike for every source."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from releases import write_allstar, write_aspcap

from chemscale import open_survey
from chemscale.catalogues.labels import join_labels
from chemscale.catalogues.members import read_members
from chemscale.catalogues.missing import cluster_name, gaia_ids, identifiers, measured, whole_identifiers, words
from chemscale.catalogues.opening import open_catalogue
from chemscale.catalogues.species import abundances, species_columns
from chemscale.catalogues.star_keys import StarKeys
from chemscale.errors import InputError
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.sources.table import TableSource

IDS = ["2M00000000+0000000", "2M00000001+0000001", "2M00000002+0000002"]


def catalogue(path, kind, ids=IDS, clusters=("NGC 1", "NGC 2", "")):
    table = Table({"APOGEE_ID": ids, "CLUSTER": clusters, "teff": [4000.0, -9999.0, 5000.0]})
    if kind == "fits":
        table.write(path, format="fits")
    elif kind == "fits.gz":
        table.write(path.with_suffix(".tmp"), format="fits")
        path.write_bytes(gzip.compress(path.with_suffix(".tmp").read_bytes()))
    elif kind == "ascii table":
        from astropy.io import fits

        columns = [fits.Column(n, "A18", array=np.array(table[n])) for n in ("APOGEE_ID", "CLUSTER")]
        columns.append(fits.Column("teff", "E15.7", array=np.array(table["teff"])))
        fits.HDUList([fits.PrimaryHDU(), fits.TableHDU.from_columns(columns)]).writeto(path)
    elif kind == "parquet":
        pytest.importorskip("pyarrow")
        table.to_pandas().to_parquet(path)
    elif kind in ("votable", "ascii.ecsv"):
        table.write(path, format=kind)
    elif kind == "parquet by astropy":
        pytest.importorskip("pyarrow")
        table["teff"] = MaskedColumn(table["teff"], mask=[False, True, False])
        table["CLUSTER"] = MaskedColumn(["NGC 1", "NGC 2", "NGC 3"], mask=[False, False, True])
        table.write(path, format="parquet")
    elif kind in ("ascii.ipac", "ascii.mrt"):
        table["CLUSTER"] = MaskedColumn(["NGC 1", "NGC 2", "NGC 3"], mask=[False, False, True])
        table.write(path, format=kind)
    elif kind == "framed":
        rows = [["APOGEE_ID", "CLUSTER", "teff"], *map(list, zip(ids, clusters, table["teff"]))]
        lines = ["| " + " | ".join(f"{v!s:20}" for v in row) + " |" for row in rows]
        frame = "+" + "+".join(["-" * 22] * 3) + "+"
        path.write_text("\n".join([frame, lines[0], frame, *lines[1:], frame]) + "\n")
    elif kind == "stilts":
        rows = [f'  {i} "{c}" {t}' for i, c, t in zip(ids, clusters, table["teff"])]
        path.write_text("# APOGEE_ID   CLUSTER  teff\n" + "\n".join(rows) + "\n")
    else:
        rows = [f"{i}{kind}{c}{kind}{t}" for i, c, t in zip(ids, clusters, table["teff"])]
        path.write_text(f"# made up\nAPOGEE_ID{kind}CLUSTER{kind}teff\n" + "\n".join(rows) + "\n")
    return str(path)


KINDS = ["fits", "fits.gz", "ascii table", "parquet", "parquet by astropy", "votable", "ascii.ecsv", "ascii.ipac"]
KINDS += ["ascii.mrt", "framed", "stilts", ",", "|", ";", "\t"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_table_gives_the_same_members_and_labels(tmp_path, kind):
    path = catalogue(tmp_path / "table.dat", kind)
    found = read_members(path, key="apogee_id", column="cluster")
    assert found.stars == {
        IDS[0]: ("NGC 1", pytest.approx(np.nan, nan_ok=True)),
        IDS[1]: ("NGC 2", pytest.approx(np.nan, nan_ok=True)),
    }
    keys = StarKeys({"apogee_id": lambda: [*IDS[::-1], "2M9"]})
    joined = join_labels(path, keys, 4)
    np.testing.assert_array_equal(joined.columns["teff"], np.array([5000, np.nan, 4000, np.nan], "f4"))
    assert joined.note["matched"] == 3 and joined.note["stars_without_labels"] == 1
    assert joined.note["ignored"] == ["CLUSTER"]


def test_a_file_that_gives_labels_and_members_leaves_out_what_neither_needs(tmp_path):
    np.savez(tmp_path / "t.npz", flux=np.ones((3, 9)), error=np.full((3, 9), 0.01), wavelength=np.arange(9) + 5000.0)
    ids = [f"t-{row:08d}" for row in range(3)]
    Table({"star_id": ids, "teff": [4e3, 5e3, 6e3], "cluster": ["a", "", ""], "colour": [0.1, 0.2, 0.3]}).write(
        tmp_path / "c.ecsv"
    )
    both = str(tmp_path / "c.ecsv")
    plan = TableSource(str(tmp_path / "t.npz"), labels=both, members=both, member_key="star_id").plan()
    assert [(i.labels["teff"], i.labels["cluster"]) for i in plan.items] == [(4e3, "a"), (5e3, ""), (6e3, "")]
    assert plan.attrs["ignored"] == ["colour of c.ecsv"]


def test_names_behind_a_hash_and_a_line_of_units_are_read(tmp_path):
    for header in ("#APOGEE_ID,rv,note\n", "# made up\n# APOGEE_ID , rv , note\n", "APOGEE_ID,rv,note\n,m/s,\n"):
        lines = [f"{star},{rv},x" for star, rv in zip(IDS, ("-150000", "", "12000"))]
        (tmp_path / "t.csv").write_text(header + "\n".join(lines) + "\n")
        joined = join_labels(str(tmp_path / "t.csv"), StarKeys({"apogee_id": lambda: IDS}), 3)
        rv = np.array([-150, np.nan, 12]) * (1 if "m/s" in header else 1000)
        np.testing.assert_allclose(joined.columns["radial_velocity"], rv)
        assert joined.note["rows"] == 3
    (tmp_path / "t.csv").write_text("APOGEE_ID,rv\n" + "\n".join(f"{star},N/A" for star in IDS[:2]) + f"\n{IDS[2]},5\n")
    assert open_catalogue(str(tmp_path / "t.csv")).read(["rv"])["rv"].tolist() == ["N/A", "N/A", "5"]


@pytest.mark.parametrize("unit", ["m/s", "cm/s"])
def test_units_of_a_parquet_file_by_astropy_count(tmp_path, unit):
    pytest.importorskip("pyarrow")
    factor = {"m/s": 1e3, "cm/s": 1e5}[unit]
    table = Table({"APOGEE_ID": IDS, "rv": MaskedColumn([-150 * factor, 0.0, 12 * factor], unit=unit)})
    table["rv"].mask = [False, True, False]
    table.write(tmp_path / "t.parquet")
    joined = join_labels(str(tmp_path / "t.parquet"), StarKeys({"apogee_id": lambda: IDS}), 3)
    np.testing.assert_allclose(joined.columns["radial_velocity"], [-150, np.nan, 12])


def test_the_verbs_of_two_sources_take_the_same_catalogues(tmp_path):
    for star in IDS:
        write_aspcap(tmp_path / "s" / f"aspcapStar-dr17-{star}.fits", star, table=False)
    path = catalogue(tmp_path / "t.csv", ",")
    plan = ApogeeSource(str(tmp_path / "s"), members=path, labels=path).plan()
    assert {i.star_id: i.labels["cluster"] for i in plan.items} == dict(zip(IDS, ("NGC 1", "NGC 2", "")))
    assert [i.labels["teff"] for i in plan.items if i.star_id == IDS[0]] == [4000]
    np.savez(
        tmp_path / "t.npz",
        flux=np.ones((3, 50)),
        error=np.full((3, 50), 0.01),
        wavelength=5000.0 + np.arange(50),
        star_id=IDS,
    )
    source = TableSource(
        str(tmp_path / "t.npz"), members=path, member_key="apogee_id", labels=path, label_key="apogee_id"
    )
    ingest(source, tmp_path / "s.zarr", progress=False)
    survey = open_survey(tmp_path / "s.zarr")
    assert survey.cluster.values.astype(str).tolist() == ["NGC 1", "NGC 2", ""]
    np.testing.assert_array_equal(survey.teff.values, np.array([4000, np.nan, 5000], "f4"))


def test_identifiers_match_whatever_their_case(tmp_path):
    for star in IDS:
        write_aspcap(tmp_path / "s" / f"aspcapStar-dr17-{star}.fits", star, table=False)
    path = catalogue(tmp_path / "t.csv", ",", [i.lower() for i in IDS])
    plan = ApogeeSource(str(tmp_path / "s"), members=path, labels=path).plan()
    assert {i.labels["cluster"] for i in plan.items} == {"NGC 1", "NGC 2", ""} and not plan.rejected


def test_stars_match_by_position_within_the_radius_and_the_nearest_row_counts(tmp_path):
    ra, dec = np.array([10.0, 359.99999, 50.0, np.nan]), np.array([20.0, -60.0, 89.9999, 0.0])
    rows = Table({"RA": [10.0 + 3e-4, 10.0 + 1e-4, 0.00001, 50.0, 200.0], "DEC": [20.0, 20.0, -60.0, 89.9999, 5.0]})
    rows["teff"] = [1000.0, 4000.0, 5000.0, 6000.0, 7000.0]
    rows.write(tmp_path / "c.fits")
    keys = StarKeys({"star_id": lambda: list("abcd")}, position=lambda: (ra, dec))
    joined = join_labels(str(tmp_path / "c.fits"), keys, 4, key="coordinates", radius=2.0)
    np.testing.assert_array_equal(joined.columns["teff"], np.array([4000, 5000, 6000, np.nan], "f4"))
    near = join_labels(str(tmp_path / "c.fits"), keys, 4, key="coordinates", radius=0.1)
    assert near.note["matched"] == 2  # across ra = 0 it is 0.04 arc seconds


def test_identifiers_of_19_digits_are_refused_where_digits_were_lost(tmp_path):
    ids = 4295806720000000000 + 64 * np.arange(3)
    keys = StarKeys({"source_id": lambda: [str(i) for i in ids]})
    Table({"source_id": ids, "teff": [1.0, 2.0, 3.0]}).write(tmp_path / "int.fits")
    assert join_labels(str(tmp_path / "int.fits"), keys, 3).note["matched"] == 3
    Table({"source_id": ids.astype(float), "teff": [1.0, 2.0, 3.0]}).write(tmp_path / "float.fits")
    (tmp_path / "float.csv").write_text("source_id,teff\n" + "".join(f"{float(i)},5000\n" for i in ids))
    for name in ("float.fits", "float.csv"):
        with pytest.raises(InputError, match="last digits"):
            join_labels(str(tmp_path / name), keys, 3)
    with pytest.raises(InputError, match="last digits"):
        read_members(str(tmp_path / "float.fits"), key="source_id", column="teff")


def test_a_catalogue_without_a_single_match_is_refused_with_both_spellings(tmp_path):
    path = catalogue(tmp_path / "t.csv", ",")
    with pytest.raises(InputError, match=r"none of its 3 rows.*says '2M00000000\+0000000', here stars are called 'x'"):
        join_labels(path, StarKeys({"apogee_id": lambda: ["x"]}), 1)


def test_undefined_integers_of_a_catalogue_are_nan(tmp_path):
    table = Table({"id": ["a", "b"], "teff": MaskedColumn([4800, 1], mask=[False, True]), "rv": [-250.0, -9999.0]})
    table.write(tmp_path / "m.fits")
    joined = join_labels(str(tmp_path / "m.fits"), StarKeys({"id": lambda: ["a", "b"]}), 2)
    np.testing.assert_array_equal(joined.columns["teff"], np.array([4800, np.nan], "f4"))
    np.testing.assert_array_equal(joined.columns["radial_velocity"], np.array([-250, np.nan], "f4"))


def test_units_of_a_catalogue_are_converted_before_sentinels_are_looked_for(tmp_path):
    import astropy.units as u

    table = Table({"id": list("abcd"), "radial_velocity": np.array([-250e3, 250e3, -9999.0, -1e3]) * u.m / u.s})
    table.write(tmp_path / "v.fits")
    joined = join_labels(str(tmp_path / "v.fits"), StarKeys({"id": lambda: list("abcd")}), 4)
    np.testing.assert_array_equal(joined.columns["radial_velocity"], np.array([-250, 250, np.nan, -1], "f4"))


@pytest.mark.parametrize("name", ["CG_Prob", "cg_prob", "Proba"])
def test_one_cut_in_probability_for_every_source(tmp_path, name):
    Table({"id": list("abc"), "cluster": ["X"] * 3, name: [0.9, 0.8, -99.0]}).write(tmp_path / "m.fits")
    wave = 5000.0 + np.arange(50)
    np.savez(
        tmp_path / "t.npz", flux=np.ones((3, 50)), error=np.full((3, 50), 0.01), wavelength=wave, star_id=list("abc")
    )
    plan = TableSource(str(tmp_path / "t.npz"), members=str(tmp_path / "m.fits"), member_key="id").plan()
    assert [i.labels["cluster"] for i in plan.items] == ["X", "", ""]
    assert plan.attrs["membership"]["min_probability"] == 0.8 and plan.attrs["membership"]["below_minimum"] == 2


def _table_plan(folder, members, own=None, **how):
    arrays = {"wavelength": 5000.0 + np.arange(50), "star_id": list("abc")} | ({"cluster": own} if own else {})
    np.savez(folder / "t.npz", flux=np.ones((3, 50)), error=np.full((3, 50), 0.01), **arrays)
    (folder / "m.csv").write_text(members)
    return TableSource(str(folder / "t.npz"), members=str(folder / "m.csv"), member_key="id", **how).plan()


def test_what_was_decided_about_listed_members_is_told(tmp_path):
    twice = _table_plan(tmp_path, "id,cluster\na,X\nb,X\na,Y\nb,X\n")
    assert [i.labels["cluster"] for i in twice.items] == ["X", "X", ""]
    told = "the first row counts of stars listed in several clusters: 1, e.g. a is of X"
    assert told in twice.attrs["assumed"]
    likely = _table_plan(tmp_path, "id,cluster,proba\na,X,0.85\na,Y,0.9\nb,X,0.5\n")
    assert [i.labels["cluster"] for i in likely.items] == ["Y", "", ""]
    assert any("highest probability" in t and "a is of Y" in t for t in likely.attrs["assumed"])
    assert any("proba above 0.8: 1 of 3 rows" in t for t in likely.attrs["assumed"])
    asked = _table_plan(tmp_path, "id,cluster,proba\na,X,0.9\nb,X,0.5\n", min_probability=0.8)
    assert not any("above 0.8" in t for t in asked.attrs["assumed"])


def test_a_membership_table_of_other_stars_is_told(tmp_path):
    plan = _table_plan(tmp_path, "id,cluster\nHD 1,X\nHD 2,X\n")
    (told,) = (t for t in plan.attrs["assumed"] if "other stars" in t)
    assert "none of its 2 members" in told and "like HD 1" in told and "like a" in told and "--member-key" in told
    assert not any("survey's own" in t for t in plan.attrs["assumed"])


def test_clusters_that_stay_the_surveys_own_beside_a_table_of_other_stars_are_told(tmp_path):
    plan = _table_plan(tmp_path, "id,cluster\nHD 1,X\n", own=("M 67", "M 67", ""))
    assert [i.labels["cluster"] for i in plan.items] == ["M 67", "M 67", ""]
    assert any("the survey's own, of 2 stars" in t for t in plan.attrs["assumed"])
    joined = _table_plan(tmp_path, "id,cluster\nc,X\n", own=("M 67", "M 67", ""))
    assert not any("survey's own" in t for t in joined.attrs["assumed"])


def test_probabilities_in_per_cent_are_refused(tmp_path):
    (tmp_path / "m.csv").write_text("id,cluster,proba\na,X,99\nb,X,80\n")
    with pytest.raises(InputError, match="per cent"):
        read_members(
            str(tmp_path / "m.csv"), key="id", column="cluster", probability_column="proba", min_probability=0.8
        )


NO_CLUSTER = ["", "nan", "None", "null", "--", "-", "-1", "field", "<NA>", "NA", "N/A", "n/a"]
NO_CLUSTER += ["NULL", "masked", "-1.0", "-9999", "noise", "-2.5"]


@pytest.mark.parametrize("word", [*NO_CLUSTER, b"nan", None, float("nan"), -1, -1.0, np.ma.masked])
def test_no_cluster_however_it_is_written(word):
    assert cluster_name(word) == ""


@pytest.mark.parametrize(
    ("word", "name"), [("0", "0"), (7, "7"), (7.0, "7"), ("7.0", "7"), (b"M67 ", "M67"), ("M_67", "M 67")]
)
def test_a_cluster_keeps_its_name(word, name):
    assert cluster_name(word) == name


def test_sentinels_are_exact_and_ranges_are_the_contracts():
    values = [-9999.0, -9999.99, -999.99, np.float32(-9999.99), -9998.0, -150.0, 150.0, 1e30]
    known = measured("radial_velocity", np.array(values))
    np.testing.assert_array_equal(np.isnan(known), [True, True, True, True, False, False, False, True])
    assert np.isnan(measured("dec", np.array([-9999.0, 91.0]))).all()
    assert np.isnan(measured("teff", np.array(["N/A", "", "abc"]))).all()
    assert words(np.ma.array([1, 2], mask=[0, 1])) == ["1", ""]
    assert identifiers(np.array([2.0**60])) is None and identifiers(np.array([12.0, np.nan])) == ["12", ""]


def test_species_of_a_catalogue_by_name():
    names = ["fe_h", "e_fe_h", "c_1_h", "e_c_1_h", "ti_2_h", "Mg_fe", "mg_h", "c_12_13", "al_h_flags", "O_fe", "teff"]
    found = species_columns(names)
    assert [(s.species, s.over_iron) for s in found] == [
        ("Fe", False), ("CI", False), ("TiII", False), ("Mg", False), ("O", True),
    ]  # fmt: skip
    table = {n: np.array([0.25]) for n in names}
    np.testing.assert_allclose(abundances(found, table, 1)["abundance"], [[0.25, 0.25, 0.25, 0.25, 0.5]])


def test_a_catalogue_says_what_it_has(tmp_path):
    path = catalogue(tmp_path / "t.csv", ",")
    with pytest.raises(InputError, match="no column 'star'; it has APOGEE_ID, CLUSTER, teff"):
        open_catalogue(path).need("star", "")


GAIA = [5853498713190525696, 0, 4295806720]


def test_what_is_no_identifier_of_gaia_is_none():
    for values in ([7, -1, 2**32], np.array([7, -9999, 2**32]), ["7", "Gaia DR2", f"Gaia DR2 {2**32}"]):
        assert gaia_ids(values).tolist() == [0, 0, 2**32]
    assert gaia_ids(np.array([5.8e18])) is None
    assert gaia_ids(["", "5.853498713190526e+18"]) is None


def test_text_that_was_written_as_floats_is_refused_also_after_a_gap():
    with pytest.raises(InputError, match="source_id went through floating point"):
        whole_identifiers(["", "0.0", "5.853498713190526e+18"], "source_id")
    assert whole_identifiers(["", "2M00000068+5710233"], "star_id") == ["", "2M00000068+5710233"]


def test_extra_columns_and_gaias_identifiers_of_a_catalogue_are_stored_for_every_source(tmp_path):
    for star in IDS:
        write_aspcap(tmp_path / f"aspcapStar-r12-{star}.fits", star)
    named = np.array(["Gaia DR3 5853498713190525696", "N/A", "4295806720"])
    for kind, ids in (("integers", GAIA), ("text", named), ("masked", MaskedColumn(GAIA, mask=[False, True, False]))):
        table = Table({"APOGEE_ID": IDS, "gaia_dr3_source_id": ids, "Age": [3.5, np.nan, 12.0]})
        table.write(tmp_path / "l.fits", overwrite=True)
        source = ApogeeSource(str(tmp_path), labels=str(tmp_path / "l.fits"), extra=["age"])
        assert source.plan().attrs["extra"] == ["x_age"], kind
        ingest(source, tmp_path / "s.zarr", overwrite=True, progress=False)
        survey = open_survey(tmp_path / "s.zarr")
        assert survey["gaia_source_id"].dtype == np.int64 and survey["gaia_source_id"].values.tolist() == GAIA, kind
        np.testing.assert_array_equal(survey["x_age"].values, [3.5, np.nan, 12.0])
    table["gaia_dr3_source_id"] = np.array(GAIA, float)
    table.write(tmp_path / "l.fits", overwrite=True)
    plan = ApogeeSource(str(tmp_path), labels=str(tmp_path / "l.fits")).plan()
    assert "gaia_source_id" not in plan.labels
    lost = "gaia_dr3_source_id (its last digits are lost in floating point) of l.fits"
    assert lost in plan.attrs["ignored"]
    table["gaia_dr3_source_id"] = ["", "0.0", f"{float(GAIA[0])}"]  # as text
    table.write(tmp_path / "l.fits", overwrite=True)
    plan = ApogeeSource(str(tmp_path), labels=str(tmp_path / "l.fits")).plan()
    assert "gaia_source_id" not in plan.labels and lost in plan.attrs["ignored"]
    with pytest.raises(InputError, match="--extra agee: no catalogue has this column") as told:
        ApogeeSource(str(tmp_path), labels=str(tmp_path / "l.fits"), extra=["agee"]).plan()
    assert "did you mean 'Age'" in told.value.remedy
    with pytest.raises(InputError, match="name the catalogue: --labels"):
        ApogeeSource(str(tmp_path), extra=["age"]).plan()


def test_extra_columns_and_gaias_identifiers_of_allstar(tmp_path):
    for star in IDS:
        write_aspcap(tmp_path / f"aspcapStar-r12-{star}.fits", star)
    write_allstar(tmp_path / "allStar.fits", [{"APOGEE_ID": star, "FIELD": "M67"} for star in IDS])
    table = Table.read(tmp_path / "allStar.fits", hdu=1)
    table["GAIAEDR3_SOURCE_ID"], table["AGE"] = np.array(GAIA), [1.0, 2.0, 3.0]
    table.write(tmp_path / "allStar.fits", overwrite=True)
    source = ApogeeSource(str(tmp_path), str(tmp_path / "allStar.fits"), extra=["age"])
    plan = source.plan()
    assert not {"AGE of allStar", "GAIAEDR3_SOURCE_ID of allStar"} & set(plan.attrs["ignored"])
    block = source.read(plan.items, plan.wavelength, plan.elements)
    assert block.labels["gaia_source_id"].tolist() == GAIA and block.labels["x_age"].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(InputError, match="--extra agee: no catalogue has this column") as told:
        ApogeeSource(str(tmp_path), str(tmp_path / "allStar.fits"), extra=["agee"]).plan()
    assert "did you mean 'AGE'" in told.value.remedy
