"""Results in a notebook: readable, escaped, nothing computed; xarray and quantities at the door."""

from __future__ import annotations

import astropy.units as u
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from helpers import make_survey

import chemscale
from chemscale.display import Shown, table
from chemscale.errors import DataError, InputError
from chemscale.labelled import plain

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    field = rng.normal(size=(400, 4)) * [1, 1, 1, 5]
    clusters = np.repeat([HOSTILE, *(f"C{i}" for i in range(9))], 6)
    members = np.repeat(rng.normal(size=(10, 4)), 6, axis=0) + rng.normal(size=(60, 4)) * [0.1, 0.2, 1, 5]
    return field, members, clusters


def embedding(toy) -> xr.Dataset:
    field, members, clusters = toy
    n, m = len(field), len(members)
    rng = np.random.default_rng(1)
    names = np.concatenate([np.full(n, ""), clusters]).astype(object)
    return xr.Dataset(
        {
            "coords": (("star", "component"), np.concatenate([field, members])),
            "role": ("star", np.array(["field"] * n + ["member"] * m, dtype=object)),
            "cluster": ("star", names),
            "star_id": ("star", np.array([f"S{i}" for i in range(n + m)], dtype=object)),
            "radial_velocity": ("star", rng.normal(0, 4, n + m), {"units": "km/s"}),
        }
    )


def test_text_is_escaped_and_long_tables_are_cut():
    assert HOSTILE not in table([[HOSTILE, 1]]) and "&lt;img" in table([[HOSTILE, 1]])
    assert "3 more" in table([[i] for i in range(43)])

    class Thing(Shown):
        def _facts(self):
            return {"stars": 12345, HOSTILE: 0.123456}

    assert repr(Thing()) == f"<Thing: stars 12,345, {HOSTILE} 0.1235>"
    assert HOSTILE not in Thing()._repr_html_() and "12,345" in Thing()._repr_html_()


def test_metric_and_rates_show_themselves(toy):
    assert "fitted no" in repr(chemscale.RSCA())
    rsca = chemscale.RSCA().fit(*toy)
    assert "field stars 400" in repr(rsca) and "60 of 10 clusters" in rsca._repr_html_()
    rates = chemscale.doppelganger_rates(*toy)
    assert f"overall {rates.overall:.4f}"[:12] in repr(rates) and len(repr(rates)) < 200
    page = rates._repr_html_()
    assert HOSTILE not in page and "&lt;img" in page and page.count("<tr>") > 10
    ds = rates.to_dataset()
    assert ds["rate"].sel(cluster="C3") == rates.per_cluster["C3"] and ds.attrs["overall"] == rates.overall
    weights = ds["n_members"] / ds["n_members"].sum()
    assert float((ds["rate"] * weights).sum()) == pytest.approx(rates.overall)


def test_basis_shows_itself_and_speaks_xarray():
    survey = make_survey(n_field=150, n_clusters=2, n_pixels=40)
    ppca = chemscale.MaskedPPCA(3)
    assert "fitted no" in repr(ppca)
    missing = survey.chemscale.missing()
    ppca.fit(survey)
    again = chemscale.MaskedPPCA(3).fit(survey["flux"].values, missing.values, survey["ivar"].values)
    np.testing.assert_allclose(ppca.components_, again.components_)
    assert "components 3" in repr(ppca) and "stars" in ppca._repr_html_()
    z, variance = ppca.transform_with_variance(survey)
    assert z.dims == ("star", "component") and variance.shape == z.shape
    assert list(z["star_id"].values) == list(survey["star_id"].values)
    np.testing.assert_array_equal(z.values, ppca.transform(survey["flux"].values, missing.values))
    lazy = ppca.transform(survey["flux"].chunk(star=50), missing.chunk(star=50))
    assert isinstance(lazy.data, da.Array)  # nothing was read
    np.testing.assert_allclose(lazy.values, z.values)
    with pytest.raises(InputError, match="brings its own"):
        ppca.transform(survey, missing)
    with pytest.raises(InputError, match="no flux"):
        ppca.fit(survey.drop_vars("flux"))


def test_an_embedding_is_enough_for_metric_and_rates(toy):
    field, members, clusters = toy
    ds = embedding(toy)
    v = ds["radial_velocity"].values
    rsca = chemscale.RSCA().fit(ds)
    np.testing.assert_allclose(rsca.scale_, chemscale.RSCA().fit(*toy).scale_)
    features = rsca.transform(ds, n_features=2)
    assert features.dims == ("star", "feature") and features["star_id"].values[0] == "S0"
    np.testing.assert_allclose(features.values[:400], rsca.transform(field, 2))
    by_hand = chemscale.doppelganger_rates(
        field, members, clusters, field_velocity=v[:400], member_velocity=v[400:], max_delta_velocity=3
    )
    assert chemscale.doppelganger_rates(ds, max_delta_velocity=3).overall == by_hand.overall
    with pytest.raises(DataError, match="no member stars"):
        chemscale.RSCA().fit(ds.isel(star=slice(0, 400)))
    with pytest.raises(InputError, match="no coords"):
        chemscale.RSCA().fit(ds.drop_vars("coords"))
    with pytest.raises(InputError, match="no members"):
        chemscale.RSCA().fit(field)


def test_quantities_are_converted(toy):
    field, members, clusters = toy
    v = embedding(toy)["radial_velocity"].values
    numbers = chemscale.doppelganger_rates(
        field, members, clusters, field_velocity=v[:400], member_velocity=v[400:], max_delta_velocity=3
    )
    units = chemscale.doppelganger_rates(
        *toy,
        field_velocity=(v[:400] * u.km / u.s).to(u.m / u.s),
        member_velocity=xr.DataArray(v[400:] * 1000, dims="star", attrs={"units": "m/s"}),
        max_delta_velocity=3000 * u.m / u.s,
    )
    assert units.per_cluster == numbers.per_cluster
    with pytest.raises(InputError, match="max_delta_velocity is in K"):
        chemscale.doppelganger_rates(*toy, max_delta_velocity=3 * u.K)
    with pytest.raises(InputError, match="units 'K'"):
        plain(xr.DataArray([1.0], dims="star", attrs={"units": "K"}), "km/s")
    turned = xr.DataArray(np.zeros((3, 5)), dims=("wavelength", "star"))
    assert plain(turned).shape == (5, 3)


def test_a_survey_tells_what_it_is():
    survey = make_survey(n_field=20, n_clusters=2, members=3, n_pixels=30)
    survey.attrs["survey"] = HOSTILE
    text, page = repr(survey.chemscale), survey.chemscale._repr_html_()
    assert "stars 26" in text and "2 with 6 members" in text
    assert HOSTILE not in page and "pixels" in page


def test_a_run_lists_stages_and_products(tmp_path):
    run = chemscale.Run.create(tmp_path / "run", store=str(tmp_path / "s.zarr"))
    assert "nothing yet" in repr(run)
    with run.stage("select") as stage:
        stage.note(n=1234, name=HOSTILE)
    run.save_json("evaluation.json", {})
    page = run._repr_html_()
    assert "done select" in repr(run) and "1,234" in page and HOSTILE not in page
    assert run.products() == {"evaluation.json": "doppelganger rates"}
    assert "doppelganger rates" in page


def test_study_result_shows_its_figure():
    from chemscale.studies import style
    from chemscale.studies.registry import StudyResult

    fig, ax = style.figure()
    ax.plot([1, 2])
    result = StudyResult(fig, {"x": [1, 2]}, {"x": "x"}, {"rate": 0.1234567}, HOSTILE)
    assert repr(result) == "<StudyResult: rate 0.1235>"
    assert "data:image/png;base64," in result._repr_html_() and HOSTILE not in result._repr_html_()
