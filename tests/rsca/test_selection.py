"""Cuts of section 4.1 and the split into field and members."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from helpers import make_survey
from hypothesis import given, settings
from hypothesis import strategies as st

from chemscale.errors import DataError, InputError
from chemscale.rsca.selection import (
    EXCLUDED_FIELD,
    EXCLUDED_MEMBERS,
    PAPER_SELECTION,
    STAR_BAD,
    SelectionSettings,
    default_settings,
    select_stars,
)
from chemscale.schema import APOGEE_ELEMENTS


def survey(n: int = 12, name: str = "apogee", **columns) -> xr.Dataset:
    """`n` giants that pass the paper's cuts; members of A (rows 0-2) and B (rows 3-4)."""
    cluster = np.array(["A"] * 3 + ["B"] * 2 + [""] * (n - 5))
    data = {
        "star_id": np.array([f"2M{i}" for i in range(n)]),
        "cluster": cluster,
        "teff": np.full(n, 4500.0, "f4"),
        "logg": np.full(n, 2.0, "f4"),
        "quality": np.zeros(n, "i8"),
        "snr": np.full(n, 100, "f4"),
    }
    data |= {k: np.asarray(v) for k, v in columns.items() if k != "abundance"}
    abundance = columns.get("abundance", np.zeros((n, len(APOGEE_ELEMENTS)), "f4"))
    variables = {k: (("star",), v) for k, v in data.items()} | {"abundance": (("star", "element"), abundance)}
    return xr.Dataset(variables, {"element": list(APOGEE_ELEMENTS)}, {"survey": name})


def changed(name: str, changes: dict[int, float], n: int = 12):
    values = survey(n)[name].values.copy()
    for row, value in changes.items():
        values[row] = value
    return {name: values}


def test_nothing_to_drop():
    chosen = select_stars(survey())
    assert chosen.settings == PAPER_SELECTION
    assert chosen.field.sum() == 7 and chosen.members.sum() == 5 and chosen.keep.all()
    assert chosen.clusters == {"A": 3, "B": 2} and not chosen.dropped and not chosen.warnings


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (changed("teff", {6: 4000.0, 7: 5000.0}), "teff outside 4000 to 5000"),  # open interval
        (changed("teff", {6: np.nan, 7: np.nan}), "teff missing"),
        (changed("logg", {6: 1.5, 7: 3.0}), "logg outside 1.5 to 3"),
        (changed("quality", {6: STAR_BAD, 7: STAR_BAD + 5}), "flagged bad by the survey"),
    ],
)
def test_each_cut(columns, reason):
    chosen = select_stars(survey(**columns))
    assert chosen.dropped == {reason: 2}
    assert not chosen.field[[6, 7]].any() and chosen.keep.sum() == 10
    elsewhere = select_stars(survey(name="lamost", **columns))
    assert elsewhere.keep.all() and elsewhere.settings == SelectionSettings()


def test_other_bits_do_not_exclude():
    assert select_stars(survey(**changed("quality", {6: 1, 7: 2**22}))).keep.all()


def test_all_paper_abundances_must_be_defined():
    abundance = np.zeros((12, 26), "f4")
    abundance[6, APOGEE_ELEMENTS.index("Cu")] = np.nan
    abundance[:, APOGEE_ELEMENTS.index("Yb")] = np.nan  # not one of the 21
    chosen = select_stars(survey(abundance=abundance))
    assert chosen.dropped == {"an abundance is not defined": 1} and not chosen.field[6] and not chosen.warnings
    abundance[:, APOGEE_ELEMENTS.index("Cu")] = np.nan  # as in DR17
    with pytest.warns(UserWarning, match="no star has Cu"):
        chosen = select_stars(survey(abundance=abundance))
    assert chosen.keep.all()


def test_left_out_by_hand():
    ids = [f"2M{i}" for i in range(12)]
    ids[0], ids[6], ids[7] = EXCLUDED_MEMBERS[0], EXCLUDED_FIELD[0], EXCLUDED_FIELD[2]
    chosen = select_stars(survey(star_id=ids))
    assert chosen.dropped == {"member left out by hand": 1, "field star left out by hand": 2}
    assert chosen.clusters == {"A": 2, "B": 2} and chosen.field.sum() == 5


def test_a_cluster_left_with_one_member_is_no_cluster_and_no_field():
    chosen = select_stars(survey(**changed("teff", {3: 6000.0})))
    assert chosen.dropped == {"teff outside 4000 to 5000": 1, "cluster has fewer than 2 members left": 1}
    assert chosen.clusters == {"A": 3} and not chosen.field[4] and not chosen.keep[[3, 4]].any()
    assert set(chosen.cluster) == {"A", ""}
    assert select_stars(survey(), min_members=3).clusters == {"A": 3}


def test_membership_probability():
    p = np.full(12, np.nan, "f4")
    p[:5] = [0.9, 0.8, 0.99, 0.85, 0.95]
    chosen = select_stars(survey(cluster_probability=p), min_probability=0.8)
    assert chosen.clusters == {"A": 2, "B": 2} and not chosen.field[1]
    with pytest.warns(UserWarning, match="no member has a probability"):
        assert select_stars(survey(), min_probability=0.8).keep.all()


def test_a_label_nobody_has_is_skipped_and_said():
    missing = survey(teff=np.full(12, np.nan, "f4")).drop_vars(["quality", "abundance", "element"])
    with pytest.warns(UserWarning) as caught:
        chosen = select_stars(missing)
    assert chosen.keep.all() and len(caught) == len(chosen.warnings) == 3
    assert "teff" in chosen.warnings[0] and "quality" in chosen.warnings[1] and "abundances" in chosen.warnings[2]
    assert chosen.report()["warnings"] == chosen.warnings


def test_settings_are_checked():
    with pytest.raises(InputError, match="no setting teeff"):
        select_stars(survey(), teeff=(1, 2))
    with pytest.raises(InputError, match="low < high"):
        select_stars(survey(), teff=(5000, 4000))
    with pytest.raises(InputError, match="min_members"):
        SelectionSettings(min_members=1)
    with pytest.raises(DataError, match=r"no star passes the cuts: .*\(12\)"):
        select_stars(survey(), teff=(1, 2))
    ds = survey(name="simulated")
    assert select_stars(ds).settings == SelectionSettings()
    assert select_stars(ds.assign_attrs(selection="paper")).settings == PAPER_SELECTION
    with pytest.raises(InputError, match="`selection` is 'mine'"):
        select_stars(ds.assign_attrs(selection="mine"))


def test_without_clusters_everything_is_field():
    chosen = select_stars(survey().drop_vars("cluster"))
    assert chosen.field.all() and not chosen.members.any() and chosen.clusters == {}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(6, 60))
def test_every_star_is_accounted_for(seed, n):
    rng = np.random.default_rng(seed)
    ds = survey(
        n,
        teff=rng.normal(4500, 400, n).astype("f4"),
        logg=np.where(rng.random(n) < 0.1, np.nan, rng.normal(2.2, 0.5, n)).astype("f4"),
        quality=np.where(rng.random(n) < 0.1, STAR_BAD, 0),
        cluster=rng.choice(["", "", "", "A", "B", "C"], n),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            chosen = select_stars(ds)
        except DataError:
            return
    report = chosen.report()
    assert report["n_field"] + report["n_members"] + sum(report["dropped"].values()) == n == report["n_stars"]
    assert not (chosen.field & chosen.members).any() and not (chosen.field & (ds["cluster"].values != "")).any()
    assert all(count >= 2 for count in report["clusters"].values())
    kept = ds.isel(star=chosen.keep)
    assert np.all((kept["teff"] > 4000) & (kept["teff"] < 5000) & (kept["logg"] > 1.5) & (kept["logg"] < 3))


def test_where_takes_the_place_of_the_default_cut_on_a_label():
    ds = make_survey(300, 4, 6, n_pixels=20, seed=5)
    ds.attrs["selection"] = "paper"
    defaults = default_settings(ds)
    settings = defaults.within({"teff": (4200.0, 4600.0), "radial_velocity": (-np.inf, 0.0)})
    assert settings.teff == (4200.0, 4600.0) and settings.logg == defaults.logg
    chosen = select_stars(ds, SelectionSettings().within(settings.limits))
    velocity = ds["radial_velocity"].values
    np.testing.assert_array_equal(chosen.field, (velocity < 0) & (ds["cluster"].values.astype(str) == ""))
    lines = chosen.account()
    assert sum(int(line.split()[0].replace(",", "")) for line in lines) == ds.sizes["star"]
    assert any("radial_velocity outside -inf to 0" in line for line in lines)
    with pytest.raises(InputError, match="did you mean 'teff'"):
        select_stars(ds, SelectionSettings().within({"tefff": (0.0, 1.0)}))
