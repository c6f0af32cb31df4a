"""A catalogue of one's own beside a run: matched by star, refused where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from chemscale.errors import InputError
from chemscale.results import catalogue
from chemscale.results.columns import Column, RunTable

IDS = np.array(["a", "b", "c"])


def run_table():
    return RunTable(3, [Column("star_id", lambda a, b: IDS[a:b], "text", "", width=1)])


def write(folder, **columns):
    Table(columns).write(folder / "mine.ecsv", overwrite=True)
    return folder / "mine.ecsv"


def test_columns_come_in_the_order_of_the_runs_stars(tmp_path):
    file = write(tmp_path, star_id=["c", "a"], age=[3.0, 1.0], name=["third", "first"], gaia_id=[2**60 + 3, 2**60 + 1])
    table = run_table()
    assert catalogue.add(table, file) == 2
    found = {c.name: c.read(0, 3) for c in table.columns}
    np.testing.assert_array_equal(found["x_age"], [1, np.nan, 3])
    assert found["x_name"].tolist() == ["first", "", "third"]
    assert found["x_gaia_id"].tolist() == [2**60 + 1, 0, 2**60 + 3]  # every digit kept


def test_gaps_are_gaps_in_every_form_of_file(tmp_path):
    gap = np.ma.masked_array([7, 8, 9], mask=[False, True, False])
    mine = Table({"id": ["a", "b", "c"], "planets": gap, "gaia": [2**60, 1, 2], "note": ["x", "", "z"]})
    mine["plate"] = ["0266", "0267", "0268"]
    mine.write(tmp_path / "mine.fits")
    mine.write(tmp_path / "mine.vot", format="votable")
    (tmp_path / "mine.csv").write_text(f"ID;planets;gaia;note\na;7;{2**60};x\nb;;1;\nc;9;2;z\n")
    for file in ("mine.fits", "mine.vot", "mine.csv"):
        table = run_table()
        catalogue.add(table, tmp_path / file)
        found = {c.name: c.read(0, 3) for c in table.columns}
        np.testing.assert_array_equal(found["x_planets"], [7, np.nan, 9], err_msg=file)
        assert found["x_gaia"].tolist() == [2**60, 1, 2] and found["x_gaia"].dtype == np.int64, file
        assert found["x_note"].tolist() == ["x", "", "z"], file
        assert "x_plate" not in found or found["x_plate"].tolist() == ["0266", "0267", "0268"], file


def test_whole_numbers_beyond_64_bits_with_a_sign_keep_their_digits_as_text(tmp_path):
    large = [2**63 + 5, 7, 2**64 - 1]
    Table({"id": ["a", "b", "c"], "hash": np.array(large, np.uint64)}).write(tmp_path / "mine.fits")
    (tmp_path / "mine.csv").write_text(f"id,hash\na,{10**19 - 1}\nb,7\n")
    for file, expected in (("mine.fits", [str(n) for n in large]), ("mine.csv", [str(10**19 - 1), "7", ""])):
        table = run_table()
        catalogue.add(table, tmp_path / file)
        found = {c.name: c.read(0, 3) for c in table.columns}
        assert found["x_hash"].tolist() == expected, file


def test_an_undefined_entry_of_a_scaled_column_is_a_gap(tmp_path):
    column = fits.Column("mag", "I", array=np.array([1234, -32768, 5]), null=-32768)
    unit = fits.BinTableHDU.from_columns([fits.Column("star_id", "1A", array=["a", "b", "c"]), column])
    unit.header["TSCAL2"] = 0.01  # of the integers as they are stored
    unit.writeto(tmp_path / "mine.fits")
    table = run_table()
    catalogue.add(table, tmp_path / "mine.fits")
    np.testing.assert_allclose(table.columns[-1].read(0, 3), [12.34, np.nan, 0.05])


@pytest.mark.parametrize(
    ("columns", "key", "told"),
    [
        ({"star_id": ["a", "a"], "age": [1, 2]}, None, "more than once"),
        ({"star_id": ["x", "y"], "age": [1, 2]}, None, "no star of the run"),
        ({"tmass": ["a", "b"], "age": [1, 2]}, None, "no column of identifiers"),
        ({"tmass": ["a", "b"], "age": [1, 2]}, "2mass", "no column 2mass"),
    ],
)
def test_a_catalogue_that_cannot_be_matched_is_refused(tmp_path, columns, key, told):
    with pytest.raises(InputError, match=told):
        catalogue.add(run_table(), write(tmp_path, **columns), key=key)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "mine.fits").write_text("no table")
    with pytest.raises(InputError, match="not a FITS file"):
        catalogue.add(run_table(), tmp_path / "mine.fits")
