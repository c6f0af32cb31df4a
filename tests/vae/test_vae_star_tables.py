"""Anomalies and flags block by block: the same numbers for any blocks, and as from whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zarr

from chemscale.errors import InputError
from chemscale.vae import anomalies, columns, flags, membership, star_tables
from chemscale.vae.data import held_out
from chemscale.vae.star_tables import Latents, find_anomalies, find_flags

NAMES = ("metal", "alpha", "carbon")
STARS = 4000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Latents of 4,000 stars with a few strange ones, and a survey with their abundances."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(3)
    z = rng.standard_normal((STARS, 3)).astype("f4")
    variance = (0.01 + 0.1 * rng.random((STARS, 3))).astype("f4")
    chi2 = (rng.chisquare(400, (STARS, 4)) / 400).astype("f4")
    chi2[::301] *= 30
    chi2[17] = np.nan
    z[17] = np.nan
    ids = np.array([f"s{i}" for i in range(STARS)], dtype=object)
    latents = xr.Dataset(
        {
            "star_id": ("star", ids),
            "mean": (("star", "latent"), z),
            "covariance": (("star", "latent", "latent_"), variance[:, :, None] * np.eye(3, dtype="f4")),
            "auxiliary": (("star", "auxiliary"), rng.standard_normal((STARS, 2)).astype("f4")),
            "chi2": (("star", "part"), chi2),
            "relative_l2": (("star", "part"), np.sqrt(chi2) * 0.01),
            "local": ("star", np.abs(rng.standard_normal((STARS, 80))).max(1).astype("f4")),
            "local_window": ("star", rng.integers(0, 80, STARS).astype("i4")),
            "norm": ("star", np.sqrt(rng.chisquare(3, STARS)).astype("f4")),
            "quiet": ("star", rng.standard_normal((STARS, 80)).max(1).astype("f4")),
            "latent": ("latent", np.array(NAMES, dtype=object)),
            "part": ("part", np.array(["all", *NAMES], dtype=object)),
        },
        attrs={"complete": True},
    )
    path = folder / "latents.zarr"
    latents.to_zarr(path, zarr_format=3, consolidated=False, encoding={"mean": {"chunks": (1000, 3)}})
    noise = rng.standard_normal((STARS, 3)) * np.sqrt(variance)
    dex = np.array([-1.2, 0.2, 0.3]) + np.array([0.5, 0.2, 0.4]) * (np.nan_to_num(z) + noise)
    known = {n: np.where(held_out(ids, 0.3), np.nan, dex[:, k]) for k, n in enumerate(NAMES)}
    return latents, Latents(str(path), STARS, 0.3, 0), known, folder


def content(path) -> dict[str, np.ndarray]:
    group = zarr.open_group(str(path), mode="r")
    return {name: np.asarray(group[name][:]) for name in sorted(group.array_keys())}


def labels_of(known: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    stars = np.flatnonzero(np.isfinite(known["metal"]))
    return {f"s{i}": {n: float(v[i]) for n, v in known.items()} for i in stars}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def one_division(monkeypatch):
    """Fewer trees: how many there are is not what these tests are about."""
    monkeypatch.setattr(membership, "REPEATS", 1)
    monkeypatch.setattr(membership, "FOLDS", 2)


@pytest.mark.parametrize("block", [1000, 4096, 777])
def test_anomalies_are_those_of_whole_arrays_for_any_blocks(world, monkeypatch, tmp_path, block):
    latents, where, _, _ = world
    monkeypatch.setattr(star_tables, "BLOCK_STARS", block)
    monkeypatch.setattr(columns, "BLOCK_STARS", block)
    out = held_out(latents["star_id"].values, 0.3)
    expected = anomalies.calibrate(latents, out, 0.02)
    table = anomalies.score(latents, expected)
    calibration, tally = find_anomalies(where, tmp_path / "anomalies.zarr", false_alarm=0.02, top=20)
    assert calibration == expected
    found = content(tmp_path / "anomalies.zarr")
    same({k: v for k, v in found.items() if k != "star_id"}, dict(table))
    assert tally.ranked == anomalies.ranked(latents, table, 20)
    assert tally.flagged == table["anomalous"].sum() and tally.n == STARS
    assert tally.held_out_flagged == table["anomalous"][out].sum() and tally.held_out == out.sum()
    assert dict(tally.causes) == anomalies.count_causes(table)


def test_flags_are_those_of_whole_arrays_for_any_blocks(world, one_division, monkeypatch, tmp_path):
    latents, where, known, _ = world
    whole = flags.apply(latents, NAMES, abundances=known)
    assert whole.model.classes["alpha_poor"].trees is not None, "the trees are part of the test"
    summaries = []
    for block in (1300, 4000):
        monkeypatch.setattr(star_tables, "BLOCK_STARS", block)
        monkeypatch.setattr(columns, "BLOCK_STARS", block)
        path = tmp_path / f"{block}.zarr"
        summary, calibrated = find_flags(where, path, NAMES, {}, labels=labels_of(known))
        assert calibrated
        same({k: v for k, v in content(path).items() if k != "star_id"}, whole.columns())
        summaries.append(summary)
    assert summaries[0] == summaries[1]
    assert summaries[0]["counts"] == {k: int(v.sum()) for k, v in whole.member.items()}
    first = summaries[0]["stars"]["alpha_poor"]
    assert [s["probability"] for s in first] == sorted((s["probability"] for s in first), reverse=True)


def test_a_sample_stands_for_a_population_too_large_to_hold(world, one_division, monkeypatch, tmp_path):
    latents, where, known, _ = world
    whole = flags.apply(latents, NAMES, abundances=known)
    monkeypatch.setattr(star_tables, "SAMPLE_STARS", 2500)
    found = []
    for block in (1000, 2500):
        monkeypatch.setattr(star_tables, "BLOCK_STARS", block)
        monkeypatch.setattr(columns, "BLOCK_STARS", block)
        summary, _ = find_flags(where, tmp_path / f"{block}.zarr", NAMES, {}, labels=labels_of(known))
        calibration, tally = find_anomalies(where, tmp_path / f"a{block}.zarr", false_alarm=0.02, top=20)
        found.append((summary, calibration, tally.ranked))
    assert found[0] == found[1]
    assert found[0][0]["calibration"]["metal"]["n_stars"] < 2500
    for name, member in whole.member.items():
        assert found[0][0]["counts"][name] == pytest.approx(member.sum(), rel=0.4), (
            name
        )  # fewer stars pay for less certainty about the purity


def test_labelled_stars_are_never_lost_to_the_sample(world, monkeypatch, tmp_path):
    _, where, known, _ = world
    monkeypatch.setattr(star_tables, "SAMPLE_STARS", 500)
    few = dict(list(labels_of(known).items())[20:60])
    summary, _ = find_flags(where, tmp_path / "f.zarr", NAMES, {}, labels=few)
    assert summary["calibration"]["metal"]["n_stars"] == 40
    with pytest.raises(InputError, match="not in the latents: nobody"):
        find_flags(where, tmp_path / "g.zarr", NAMES, {}, labels=few | {"nobody": {"metal": 0.0}})


def test_workers_write_the_same_products(world, tmp_path):
    from distributed import Client, LocalCluster

    _, where, known, _ = world
    few = dict(list(labels_of(known).items())[:400])
    here, _ = find_flags(where, tmp_path / "here.zarr", NAMES, {}, labels=few)
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        there, _ = find_flags(where, tmp_path / "there.zarr", NAMES, {}, labels=few, client=client)
        find_anomalies(where, tmp_path / "a.zarr", false_alarm=0.02, client=client)
    assert here == there
    same(content(tmp_path / "here.zarr"), content(tmp_path / "there.zarr"))
