"""Damaged and hostile files all the way into a store: nothing escapes, nothing is lost, what is good stays good."""

from __future__ import annotations

import os

import numpy as np
from astropy.io import fits
from releases import write_aspcap
from test_hostile import fuzz

from chemscale.schema import validate
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.store.layout import Layout
from chemscale.survey.store.open import open_survey
from chemscale.survey.store.verify import verify

N_DAMAGED, N_GOOD = 200, 20


def test_two_hundred_damaged_files(tmp_path):
    rng = np.random.default_rng(20)
    release = tmp_path / "in" / "release"
    write_aspcap(release / "aspcapStar-r12-l33-GOOD0000.fits", "GOOD0000")
    whole = (release / "aspcapStar-r12-l33-GOOD0000.fits").read_bytes()
    for i in range(1, N_GOOD):
        (release / f"aspcapStar-r12-l33-GOOD{i:04d}.fits").write_bytes(whole.replace(b"GOOD0000", b"GOOD%04d" % i))
    for i in range(N_DAMAGED):
        name = f"FUZZ{i:04d}"
        content = fuzz(whole.replace(b"GOOD0000", name.encode()), rng)
        (release / f"aspcapStar-r12-l33-{name}.fits").write_bytes(content)
    extra = {
        "empty": b"",
        "text": b"this is not FITS\n" * 100,
        "<script>alert(1)<": whole.replace(b"GOOD0000", b"x"),
        "..x": whole,
        "é☆": whole,
    }
    for name, content in extra.items():
        (release / f"aspcapStar-r12-l33-{name}.fits").write_bytes(content)
    huge = fits.Header([("SIMPLE", True), ("BITPIX", -64), ("NAXIS", 2), ("NAXIS1", 2**31 - 1), ("NAXIS2", 2**31 - 1)])
    (release / "aspcapStar-r12-l33-HUGE.fits").write_bytes(huge.tostring().encode())
    os.symlink("aspcapStar-r12-l33-LOOP.fits", release / "aspcapStar-r12-l33-LOOP.fits")
    os.symlink(release, release / "deeper")
    n_files = N_GOOD + N_DAMAGED + len(extra) + 2
    before = set((tmp_path / "in").rglob("*"))

    out = tmp_path / "out" / "s.zarr"
    summary = ingest(ApogeeSource(release), out, layout=Layout(16, 64, 64))
    assert summary.n_stars + summary.n_rejected == n_files
    assert all(r.reason and r.path for r in summary.rejected)
    assert summary.n_rejected > N_DAMAGED / 3  # the damage is real
    ds = validate(open_survey(out))
    flux, ivar, flags = ds.flux.values, ds.ivar.values, ds.flags.values
    assert np.isfinite(flux).all() and np.isfinite(ivar).all() and (ivar >= 0).all()
    assert np.abs(flux[(flags == 0) & (ivar > 0)]).max() < 1e4
    ids = list(ds.star_id.values)
    for i in range(N_GOOD):
        row = ids.index(f"GOOD{i:04d}")
        np.testing.assert_array_equal(flux[row], flux[ids.index("GOOD0000")])
    assert verify(out).ok
    assert set((tmp_path / "in").rglob("*")) == before
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"} and [p.name for p in out.parent.iterdir()] == [
        "s.zarr"
    ]
