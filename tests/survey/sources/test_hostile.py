"""Fuzzed and hostile input: 200+ damaged files a source; no crash, no memory blow-up, every one accounted for.

Damage is drawn from fixed seeds. The rule each time: plan and read return, what was damaged
is either read (flipping a bit of a flux changes a number, nothing else) or rejected with a
reason, and no file is lost from the account.
"""

from __future__ import annotations

import gzip
import os
import tracemalloc

import numpy as np
import pytest
from astropy.io import fits
from releases import aspcap_arrays, lamost_arrays, write_aspcap, write_lamost

from chemscale.errors import InputError
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.sources.lamost import LamostSource
from chemscale.survey.sources.table import TableSource

N_FUZZED = 200


def fuzz(content: bytes, rng: np.random.Generator) -> bytes:
    """One random damage: cut, flip bits, overwrite, insert, rewrite a header number, swap blocks."""
    data = bytearray(content)
    kind = rng.integers(0, 9)
    if kind == 0:
        return bytes(data[: rng.integers(0, len(data))])
    if kind == 1:
        for at in rng.integers(0, len(data), rng.integers(1, 50)):
            data[at] ^= 1 << rng.integers(0, 8)
    elif kind == 2:  # header bytes only
        for at in rng.integers(0, min(len(data), 2880 * 2), rng.integers(1, 20)):
            data[at] ^= 1 << rng.integers(0, 8)
    elif kind == 3:
        start = int(rng.integers(0, len(data)))
        data[start : start + 3000] = rng.integers(0, 256, 3000, dtype=np.uint8).tobytes()
    elif kind == 4:
        start = int(rng.integers(0, len(data)))
        data[start:start] = rng.integers(0, 256, int(rng.integers(1, 5000)), dtype=np.uint8).tobytes()
    elif kind == 5:
        keys = [b"NAXIS1", b"NAXIS2", b"NAXIS", b"BITPIX", b"PCOUNT", b"GCOUNT", b"TFIELDS", b"TFORM1", b"CRVAL1", b"Z"]
        for key in rng.permutation(np.array(keys, dtype=object))[:3]:
            at = bytes(data).find(key.ljust(8) + b"=")
            if at >= 0:
                value = rng.choice([b"-1", b"0", b"99999999999999999999", b"T", b"NaN", b"1E400", b"'x'", b"2", b""])
                data[at + 10 : at + 30] = value.rjust(20)
    elif kind == 6:
        blocks = [bytes(data[i : i + 2880]) for i in range(0, len(data), 2880)]
        return b"".join(blocks[i] for i in rng.permutation(len(blocks)))
    elif kind == 7:
        return bytes(data) * 2
    else:
        size = int(rng.integers(1, 40)) * 4
        start = int(rng.integers(0, len(data) - size))
        data[start : start + size] = np.tile(np.array([np.nan, np.inf, 1e38, -1e38], ">f4"), size)[
            : size // 4
        ].tobytes()
    return bytes(data)


def account(source, n_files, memory_limit=100 * 2**20):
    tracemalloc.start()
    plan = source.plan()
    block = source.read(plan.items, plan.wavelength, plan.elements)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < memory_limit
    assert len(block.star_id) + len(block.rejected) + len(plan.rejected) == n_files
    assert all(r.reason and r.path for r in (*block.rejected, *plan.rejected))
    assert block.flux.shape == block.ivar.shape == block.flags.shape == (len(block.star_id), len(plan.wavelength))
    assert np.all(np.isfinite(block.ivar)) and np.all(block.ivar >= 0)
    used = (block.ivar > 0) & (block.flags == 0) & np.isfinite(block.flux)
    assert np.all(np.abs(block.flux[used]) <= 1e3)
    for rejection in (*block.rejected, *plan.rejected):
        (rejection.path + rejection.reason + rejection.star_id).encode("utf-8")  # can be written to a report
        assert "\n" not in rejection.path + rejection.reason + rejection.star_id
    return plan, block


@pytest.mark.parametrize("seed", range(2))
def test_fuzzed_apogee(tmp_path, seed):
    rng = np.random.default_rng(seed)
    content = write_aspcap(tmp_path / "template", "2M1").read_bytes()
    content = content.replace(b"OBJ     = '2M1", b"COMMENT = '2M1", 1)
    for i in range(N_FUZZED // 2):
        (tmp_path / f"aspcapStar-r12-2M{i}.fits").write_bytes(fuzz(content, rng))
    _, block = account(ApogeeSource(str(tmp_path)), N_FUZZED // 2)
    assert len(block.rejected) > 30 and len({r.reason.split(":")[0] for r in block.rejected}) > 5


@pytest.mark.parametrize("layout", ["dr8", "dr10"])
def test_fuzzed_lamost(tmp_path, layout):
    rng = np.random.default_rng(7)
    content = write_lamost(tmp_path / "template", layout=layout).read_bytes()
    for i in range(N_FUZZED // 2):
        damaged = fuzz(content, rng)
        if i % 4 == 0:
            (tmp_path / f"spec-{i}.fits.gz").write_bytes(fuzz(gzip.compress(content, 1), rng))
        else:
            (tmp_path / f"spec-{i}.fits").write_bytes(damaged)
    _, block = account(LamostSource(str(tmp_path)), N_FUZZED // 2)
    assert len(block.rejected) > 25


@pytest.mark.parametrize("name", ["t.npz", "c.npz", "t.fits"])
def test_fuzzed_tables(tmp_path, name):
    """One file is one survey here: a damaged one is refused with an InputError or read."""
    rng = np.random.default_rng(11)
    data = {"flux": rng.normal(1, 0.1, (20, 50)).astype("f4"), "error": np.full((20, 50), 0.1, "f4")}
    data["teff"] = np.full(20, 5000.0)
    if name == "t.fits":
        columns = [fits.Column(k, f"{v.shape[1]}E" if v.ndim == 2 else "D", array=v) for k, v in data.items()]
        wave = fits.ImageHDU(np.linspace(5000, 5100, 50), name="wavelength")
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns), wave]).writeto(tmp_path / name)
    else:
        (np.savez if name == "t.npz" else np.savez_compressed)(
            tmp_path / name, wavelength=np.linspace(5000, 5100, 50), **data
        )
    content = (tmp_path / name).read_bytes()
    refused = 0
    for i in range(N_FUZZED // 2):
        path = tmp_path / f"{i}{name}"
        path.write_bytes(fuzz(content, rng))
        try:
            source = TableSource(str(path))
            plan = source.plan()
            block = source.read(plan.items, plan.wavelength, plan.elements)
        except InputError:
            refused += 1
            continue
        assert len(block.star_id) + len(block.rejected) == 20 and np.all(np.isfinite(block.ivar))
    assert refused > 20


def test_extreme_values(tmp_path):
    rng = np.random.default_rng(3)
    extremes = np.array([np.nan, np.inf, -np.inf, 1e38, -1e38, 3.4e38, 1e-45, 0, -1], ">f4")
    for i in range(30):
        flux, error = aspcap_arrays(i)
        for array in (flux, error):
            array[rng.integers(0, 8575, 2000)] = rng.choice(extremes, 2000)
        write_aspcap(tmp_path / "a" / f"aspcapStar-r12-2M{i}.fits", f"2M{i}", flux=flux, error=error)
        arrays = lamost_arrays(seed=i)
        for name in ("FLUX", "IVAR", "ANDMASK", "NORMALIZATION"):
            arrays[name][rng.integers(0, 3909, 800)] = rng.choice(extremes, 800)
        write_lamost(tmp_path / "l" / f"spec-{i}.fits", arrays=arrays)
    _, block = account(ApogeeSource(str(tmp_path / "a")), 30)
    assert len(block.star_id) == 30
    with np.errstate(all="raise", under="ignore"):
        _, block = account(LamostSource(str(tmp_path / "l")), 30)
    assert len(block.star_id) == 30
    account(LamostSource(str(tmp_path / "l"), continuum="survey"), 30)


def test_hostile_names(tmp_path):
    good = write_aspcap(tmp_path / "template", "x").read_bytes().replace(b"OBJ     = 'x", b"COMMENT = 'x", 1)
    names = [
        "<script>alert(1)<",
        "..",
        "..%2Fx",
        "2M1\n2M2",
        "é toile",
        "a" * 200,
        "星",
        "'; DROP TABLE",
        "{{7*7}}",
        "\x1b[31m",
    ]
    for name in names:
        (tmp_path / f"aspcapStar-r12-{name}.fits").write_bytes(good)
    raw = os.fsencode(tmp_path) + b"/aspcapStar-r12-\xff\xfe.fits"
    with open(raw, "wb") as stream:
        stream.write(good)
    plan, block = account(ApogeeSource(str(tmp_path)), len(names) + 1)
    assert set(block.star_id) == {"<script>alert(1)<", "..", "..%2Fx", "é toile", "星", "'; DROP TABLE", "{{7*7}}"}
    assert len(plan.rejected) == 4
    assert sum("control characters or undecodable" in r.reason for r in plan.rejected) == 3
    # nothing was written anywhere
    assert len(list(tmp_path.iterdir())) == len(names) + 2


def test_links_loops_and_odd_files(tmp_path):
    write_aspcap(tmp_path / "s" / "deep" / "er" / "aspcapStar-r12-2M1.fits", "2M1")
    (tmp_path / "s" / "deep" / "loop").symlink_to(tmp_path / "s")
    (tmp_path / "s" / "self").symlink_to(tmp_path / "s" / "self")
    (tmp_path / "s" / "aspcapStar-r12-2M2.fits").symlink_to(tmp_path / "s" / "aspcapStar-r12-2M2.fits")
    os.mkfifo(tmp_path / "s" / "aspcapStar-r12-2M3.fits")
    write_aspcap(tmp_path / "elsewhere" / "aspcapStar-r12-2M4.fits", "2M4")
    (tmp_path / "s" / "linked").symlink_to(tmp_path / "elsewhere")
    plan, block = account(ApogeeSource(str(tmp_path / "s")), 4)
    assert block.star_id == ["2M1", "2M4"]
    assert sorted(r.reason for r in plan.rejected) == ["broken or circular symbolic link", "not a regular file"]


def test_a_file_that_goes_away(tmp_path):
    for star in ("2M1", "2M2"):
        write_aspcap(tmp_path / f"aspcapStar-r12-{star}.fits", star)
    source = ApogeeSource(str(tmp_path))
    plan = source.plan()
    os.unlink(tmp_path / "aspcapStar-r12-2M1.fits")
    block = source.read(plan.items, plan.wavelength, plan.elements)
    assert block.star_id == ["2M2"] and "No such file" in block.rejected[0].reason
