"""The small FITS reader: equal to astropy on real files, strict on damaged ones."""

from __future__ import annotations

import errno
import gzip
import os
import tracemalloc

import numpy as np
import pytest
from astropy.io import fits as afits

from chemscale.formats import fits, fits_tables
from chemscale.formats.fits_header import FitsError


def simple_file(path, **header):
    hdu = afits.PrimaryHDU(np.arange(12, dtype=">f4").reshape(3, 4))
    for key, value in header.items():
        hdu.header[key] = value
    table = afits.BinTableHDU.from_columns(
        [
            afits.Column("NAME", "8A", array=["a", "bc "]),
            afits.Column("X", "D", array=[1.5, np.nan]),
            afits.Column("V", "3E", array=np.arange(6.0).reshape(2, 3)),
            afits.Column("N", "K", array=[2**40, -1]),
            afits.Column("VAR", "PE()", array=np.array([np.ones(2), np.ones(3)], dtype=object)),
            afits.Column("LAST", "I", array=[7, 8]),
        ]
    )
    afits.HDUList([hdu, afits.ImageHDU(np.arange(5, dtype=np.int16)), table]).writeto(path)
    return path


def same(mine: np.ndarray, theirs: np.ndarray) -> bool:
    if mine.dtype.kind == "U":
        return np.array_equal(mine, np.char.strip(theirs.astype(str)).reshape(mine.shape))
    return np.array_equal(mine, theirs.reshape(mine.shape), equal_nan=mine.dtype.kind == "f")


def assert_equals_astropy(path):
    units = fits.scan(fits.read_bytes(str(path)))
    compared = 0
    with afits.open(path, memmap=False) as reference:
        assert len(units) == len(reference)
        for mine, theirs in zip(units, reference):
            for key in theirs.header:
                try:
                    value = theirs.header[key]
                except afits.VerifyError:  # a bare NaN, which IDL wrote and the standard does not know
                    assert np.isnan(mine.header.get(key))
                    continue
                if key not in {"COMMENT", "HISTORY", ""} and not isinstance(value, afits.card.Undefined):
                    assert mine.header.get(key) == (value.rstrip() if isinstance(value, str) else value), key
            if mine.kind == "BINTABLE":
                for name in mine.layout().dtype.names:
                    column = np.asarray(theirs.data[name])
                    values = mine.column(name)
                    shown = np.ma.getdata(values)
                    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind == "b":
                        column, shown = column[~values.mask], values.compressed()  # neither T nor F: undefined
                    assert values.size == np.asarray(theirs.data[name]).size
                    assert same(shown, column), name
                    compared += 1
            elif theirs.data is not None:
                assert same(mine.image(), theirs.data)
                assert mine.image().dtype.isnative
                compared += 1
    assert compared


def test_equals_astropy(tmp_path):
    path = simple_file(tmp_path / "a.fits", COEFF0=3.5682, NAME="it's / here", FLAG=True, BIG=1.5e-30)
    assert_equals_astropy(path)
    packed = tmp_path / "a.fits.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()[:5000]) + gzip.compress(path.read_bytes()[5000:]))
    assert fits.read_bytes(str(packed)) == path.read_bytes()


def test_real_files(shared_data):
    paths = sorted((shared_data / "apogee").rglob("*.fits"))
    paths += sorted((shared_data / "catalogues").glob("*.fits"))
    paths += sorted((shared_data / "lamost_dr1").iterdir())[:2]
    paths += sorted((shared_data / "lamost_dr10" / "spectra").iterdir())[:3]
    assert len(paths) > 25
    for path in paths:
        assert_equals_astropy(path)


def test_columns_around_a_variable_length_one(tmp_path):
    path = simple_file(tmp_path / "a.fits")
    table = fits_tables.read_table(str(path), hdu=2)
    assert "VAR" not in table
    assert table["LAST"].tolist() == [7, 8] and table["N"].tolist() == [2**40, -1]
    assert fits_tables.table_columns(str(path), hdu=2) == ("NAME", "X", "V", "N", "LAST")


def test_big_tables_are_read_in_blocks(tmp_path):
    rows = 2500
    data = np.arange(rows, dtype=float)
    columns = [afits.Column("A", "D", array=data), afits.Column("PAD", "900A", array=["x"] * rows)]
    path = tmp_path / "big.fits"
    afits.HDUList([afits.PrimaryHDU(), afits.BinTableHDU.from_columns(columns)]).writeto(path)
    blocks = list(fits_tables.iter_table(str(path), ["a", "missing"], rows=999))
    assert [len(b["a"]) for b in blocks] == [999, 999, 502]
    np.testing.assert_array_equal(np.concatenate([b["a"] for b in blocks]), data)
    whole = path.read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FitsError, match="rows early"):
        fits_tables.read_table(str(tmp_path / "cut.fits"))


def damaged(tmp_path, name, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


def test_damage_is_named(tmp_path):
    good = simple_file(tmp_path / "a.fits").read_bytes()

    def outcome(content):
        with pytest.raises(FitsError) as caught:
            fits.scan(fits.read_bytes(damaged(tmp_path, "x.fits", content)))
        return str(caught.value)

    assert "empty" in outcome(b"")
    assert "does not start with SIMPLE" in outcome(b"hello" * 1000)
    assert "no END" in outcome(good[:300])
    assert "header declares 48 bytes of data, the file has 20" in outcome(good[: 2880 + 20])
    assert "NAXIS1" in outcome(good.replace(b"NAXIS1  =                    4", b"NAXIS1  =                   -4", 1))
    assert "BITPIX" in outcome(good.replace(b"BITPIX  =                  -32", b"BITPIX  =                    7", 1))
    assert "gzip" in outcome(gzip.compress(good)[:-50])
    assert "gzip" in outcome(gzip.compress(good)[:300] + b"\0" * 200)


def test_hostile_sizes_allocate_nothing(tmp_path):
    good = simple_file(tmp_path / "a.fits").read_bytes()
    huge = good.replace(b"NAXIS1  =                    4", b"NAXIS1  =       99999999999999", 1)
    bomb = gzip.compress(b"SIMPLE  =" + b"\0" * (40 * 2**20))
    tracemalloc.start()
    for content in (huge, good.replace(b"NAXIS2  =                    3", b"NAXIS2  =      888888888888888", 1)):
        with pytest.raises(FitsError, match="header declares"):
            fits.scan(fits.read_bytes(damaged(tmp_path, "x.fits", content)))
    with pytest.raises(FitsError, match="expands to more"):
        fits.gunzip(bomb, max_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.fits")
    (tmp_path / "loop.fits").symlink_to(tmp_path / "loop.fits")
    for name, reason in (("fifo.fits", "regular file"), ("loop.fits", "cannot be read"), ("none.fits", "No such file")):
        with pytest.raises(FitsError, match=reason):
            fits.read_bytes(str(tmp_path / name))
    with pytest.raises(FitsError, match="not a regular file"):
        fits.read_bytes(str(tmp_path))
    with pytest.raises(FitsError, match="cannot be read"):
        fits.read_bytes("a\0b.fits")
    (tmp_path / "big.fits").write_bytes(b"x" * 1000)
    with pytest.raises(FitsError, match="more than the limit"):
        fits.read_bytes(str(tmp_path / "big.fits"), max_bytes=999)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT])
def test_trouble_that_passes_is_no_verdict_on_the_file(tmp_path, monkeypatch, number):
    path = simple_file(tmp_path / "a.fits")

    def fail(*_):
        raise OSError(number, "later perhaps")

    monkeypatch.setattr(fits.os, "open", fail)
    with pytest.raises(OSError, match="later perhaps") as caught:
        fits.read_bytes(str(path))
    assert not isinstance(caught.value, FitsError)


def test_headers_met_before_are_not_mistaken_for_others(tmp_path):
    """Files of two layouts in turn, and files that differ from a known one in a card or in their length."""
    contents = []
    for columns, dtype in ((4, ">f4"), (7, ">f4"), (4, ">f8")):
        image = np.arange(3 * columns, dtype=dtype).reshape(3, columns)
        hdus = [afits.PrimaryHDU(), afits.ImageHDU(image), afits.ImageHDU(image + 1)]
        afits.HDUList(hdus).writeto(tmp_path / f"{columns}{dtype[1:]}.fits")
        contents.append(((tmp_path / f"{columns}{dtype[1:]}.fits").read_bytes(), image))
    for _ in range(2):
        for content, image in contents:
            units = fits.scan(content)
            np.testing.assert_array_equal(units[1].image(), image)
            np.testing.assert_array_equal(units[2].image(), image + 1)
            with pytest.raises(FitsError, match="HDU 2: header declares"):
                fits.scan(content[:-2880])
            scaled = content.replace(b"GCOUNT  =                    1", b"BSCALE  =                  2.0")
            np.testing.assert_array_equal(fits.scan(scaled)[1].image(), 2 * image)
