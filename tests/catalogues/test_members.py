"""Membership tables: OCCAM as published, CSV of one's own, and what cannot be a table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.io import fits

from chemscale.catalogues.members import cluster_name, read_members
from chemscale.errors import InputError


def test_occam(shared_data):
    path = shared_data / "catalogues" / "occam_member-DR16.fits"
    table = fits.getdata(path)
    found = read_members(
        str(path), key="APOGEE_ID", column="CLUSTER", probability_column="CG_PROB", min_probability=0.8
    )
    sure = table["CG_PROB"] > 0.8
    assert found.n_rows == len(table) == 10063 and found.n_below == np.sum(~sure)
    assert found.stars.keys() == set(np.char.strip(table["APOGEE_ID"][sure]))
    for star, (_, probability) in found.stars.items():
        rows = table["APOGEE_ID"] == star
        assert probability == table["CG_PROB"][rows].max()
    everyone = read_members(str(path), key="apogee_id", column="cluster")
    assert len(everyone.stars) == 9563 and everyone.n_repeated == 500
    assert all(math.isnan(p) for _, p in everyone.stars.values())


def test_cluster_table_and_member_table_spell_names_alike(shared_data):
    clusters = fits.getdata(shared_data / "catalogues" / "occam_cluster-DR16.fits")["NAME"]
    members = fits.getdata(shared_data / "catalogues" / "occam_member-DR16.fits")["CLUSTER"]
    assert not set(clusters) & {"ASCC 116"} and "ASCC 116" in set(members)
    assert {cluster_name(c) for c in clusters} <= {cluster_name(c) for c in members}


@pytest.mark.parametrize(
    ("written", "name"),
    [("ASCC_116", "ASCC 116"), (" NGC  6791 ", "NGC 6791"), ("-1", ""), ("nan", ""), ("Field", ""), ("2", "2")],
)
def test_names(written, name):
    assert cluster_name(written) == name


def test_csv(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("star,group,p\na,X,0.5\na,Y,0.9\nb,X,-9999.99\nc,,0.99\nd,X,nan\n,X,1\na,X,0.7\ne,X,0.8\n")
    found = read_members(str(path), key="star", column="group", probability_column="p")
    assert found.stars["a"] == ("Y", 0.9) and found.n_repeated == 2
    assert set(found.stars) == {"a", "b", "d", "e"} and math.isnan(found.stars["b"][1])
    above = read_members(str(path), key="star", column="group", probability_column="p", min_probability=0.8)
    assert above.stars == {"a": ("Y", 0.9)}  # 0.8 is not above 0.8; a sentinel is above nothing


def test_what_is_no_table(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("star,group\na,X\n")
    with pytest.raises(InputError, match=r"no column 'cluster'; it has star, group"):
        read_members(str(path), key="star", column="cluster")
    with pytest.raises(InputError, match="needs a probability column"):
        read_members(str(path), key="star", column="group", min_probability=0.5)
    path.write_text("")
    with pytest.raises(InputError, match="empty table"):
        read_members(str(path), key="star", column="group")
    path.write_text("star,group\na,X\nb,Y,Z,1\n")
    with pytest.raises(InputError, match="line 3: 4 fields, the header has 2"):
        read_members(str(path), key="star", column="group")
    path.write_text("star,group,note\na,X,1\nb,Y\n")
    with pytest.raises(InputError, match="line 3: 2 fields, the header has 3"):
        read_members(str(path), key="star", column="group")
    path.write_bytes("star,group\na,X\n".encode("utf-16"))
    with pytest.raises(InputError, match="not a table"):
        read_members(str(path), key="star", column="group")
    for name in ("none.csv", "none.fits"):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            read_members(str(tmp_path / name), key="star", column="group")
    (tmp_path / "text.fits").write_text("hello")
    with pytest.raises(InputError, match="not a FITS file"):
        read_members(str(tmp_path / "text.fits"), key="star", column="group")
