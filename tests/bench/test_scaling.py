"""Scaling measurements: sizes of graphs, ratios, and a scheduler that is really driven."""

from __future__ import annotations

import pytest

from chemscale.bench import busy, limits, pinning, saturation, scaling
from chemscale.errors import InputError
from chemscale.vae import inference


def test_graphs_stay_small():
    """10^8 stars: every graph that is in the scheduler at once is under a million tasks."""
    for stars in (10**6, 10**7, 10**8):
        tasks = saturation.graph_tasks(stars)
        assert tasks["largest graph at once"] < 10**6
        assert tasks["ingest"] < 10**6 and tasks["embed"] <= 4096 and tasks["fit (all passes)"] < 10**5
        block = saturation.BLOCK_STARS
        assert tasks["infer"] == -(-stars // inference._shard_stars(stars, block))
        assert inference._shard_stars(stars, block) % block == 0


@pytest.mark.slow
def test_tasks_of_a_fit_are_counted_right(tmp_path):
    """The number of tasks a pass takes per block, on which the extrapolation rests."""
    import sys
    from pathlib import Path

    import dask
    from dask.callbacks import Callback

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from helpers import make_survey

    from chemscale import open_survey, write_survey
    from chemscale.embedding.fit import fit_survey
    from chemscale.embedding.product import embed_survey
    from chemscale.survey.store.layout import Layout

    class Count(Callback):
        n = 0

        def _pretask(self, *arguments):
            self.n += 1

    counts = []
    for stars in (1200, 2400):  # the start takes 1,024 of them, whose tasks must not count
        store = str(tmp_path / f"{stars}.zarr")
        write_survey(make_survey(stars, 4, 6, 30, seed=1), store, layout=Layout(32, 64, 4096))
        ds = open_survey(store, chunk_stars=32)
        blocks = len(ds["flux"].chunks[0])
        with dask.config.set(scheduler="synchronous"):
            with Count() as fit:
                model = fit_survey(ds, n_components=3, keep_bytes=0, max_iter=3)
            with Count() as embed:
                embed_survey(ds, model, tmp_path / f"e{stars}.zarr")
        assert embed.n == blocks
        counts.append((blocks, model.n_passes_, fit.n))
    (small, passes, few), (large, same, many) = counts
    assert passes == same
    assert (many - few) / (large - small) / passes <= saturation.TASKS_PER_GROUP + 0.1


def test_relative_rates():
    rows = [
        {"mode": "strong", "stage": "fit", "workers": 1, "stars_per_s": 10.0},
        {"mode": "strong", "stage": "fit", "workers": 4, "stars_per_s": 30.0},
        {"mode": "weak", "stage": "fit", "workers": 4, "stars_per_s": 7.0},
    ]
    out = scaling.relative(rows)
    assert [r["speedup"] for r in out] == [1, 3, 1]
    assert [r["efficiency"] for r in out] == [1, 0.75, 1]


def test_serial_fractions_are_those_of_amdahls_law():
    rows = [
        {"mode": "strong", "stage": stage, "workers": n, "seconds": 60 * (s + (1 - s) / n)}
        for stage, s in (("fit", 0.04), ("infer", 0.25))
        for n in (1, 2, 4)
    ]
    rows.append({"mode": "strong", "stage": "embed", "workers": 1, "seconds": 1.0})
    rows.append({"mode": "weak", "stage": "fit", "workers": 1, "seconds": 1.0})
    assert scaling.serial_fractions(rows) == pytest.approx({"fit": 0.04, "infer": 0.25})


def test_idle_fractions_are_those_of_the_fewest_workers_under_strong_scaling():
    rows = [
        {"mode": "strong", "stage": "fit", "workers": 2, "seconds": 5.0, "idle_seconds": 2.0},
        {"mode": "strong", "stage": "fit", "workers": 1, "seconds": 10.0, "idle_seconds": 0.5},
        {"mode": "weak", "stage": "fit", "workers": 1, "seconds": 10.0, "idle_seconds": 5.0},
    ]
    assert scaling.idle_fractions(rows) == pytest.approx({"fit": 0.05})


def test_time_without_work_on_any_worker_is_counted():
    import time

    from distributed import Client

    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        with busy.watched(client):
            begun = time.time()
            time.sleep(0.3)
            client.gather(client.map(time.sleep, [0.4, 0.41]))
            time.sleep(0.2)
            ended = time.time()
            assert busy.idle_seconds(client, begun, ended) == pytest.approx(ended - begun - 0.4, abs=0.1)
        # a cluster that outlives the measurement does not go on collecting
        names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins))
        assert busy.BusyWorkers.name not in names


def test_bare_decoding_reads_every_star_on_the_workers(monkeypatch):
    from distributed import Client

    read = []

    class Reader:
        def read(self, start, stop, reuse=False, out=None):
            read.append((start, stop))

    monkeypatch.setattr(limits, "DECODED_STARS", 128)
    monkeypatch.setattr(limits, "_readers", lambda store: [Reader()])
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        limits.decode("a store", client, 300)
    assert sorted(read) == [(0, 128), (128, 256), (256, 300)]


def test_anomalies_need_latents(tmp_path):
    with pytest.raises(InputError, match="measure infer too"):
        scaling.measure([1], 100, tmp_path, stages=["anomalies"])


def test_unknown_stage_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown stage"):
        scaling.measure([1], 100, tmp_path, stages=["fitt"])


@pytest.mark.slow
def test_scheduler_alone():
    result = saturation.measure([5], tasks=200)
    assert {r["submit"] for r in result["scheduler"]} == {"shards", "results", "graph"}
    assert all(r["scheduler_cpu_us_per_task"] > 50 and r["tasks_per_s"] > 1 for r in result["scheduler"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_measure_and_plot(tmp_path):
    result = scaling.measure([1], 300, tmp_path / "scratch", stages=["ingest", "embed", "train", "infer", "anomalies"])
    files = scaling.save(result, tmp_path)
    assert [f.rsplit(".", 1)[1] for f in files] == ["json", "png"]
    assert all(r["seconds"] > 0 and r["worker_peak_bytes"] > 1e7 for r in result["rows"])
    assert all(0 < r["share_of_limit"] < 1.5 for r in result["rows"] if r["stage"] in scaling.READS)
    assert all(r["pinned"] is bool(pinning.available()) for r in result["rows"])


@pytest.mark.skipif(not pinning.available(), reason="no processor affinity here")
def test_a_core_each():
    """Workers of this process (it is all one process here) have a core; then everything is as it was."""
    from distributed import Client

    cores = pinning.available()
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        with pinning.a_core_each(client) as held:
            assert held
            assert client.submit(pinning.available, pure=False).result() == cores[:1]
        assert client.submit(pinning.available, pure=False).result() == cores
    assert pinning.available() == cores

    class Crowd:
        def scheduler_info(self, n_workers):
            return {"workers": dict.fromkeys(map(str, range(len(cores) + 1)))}

    with pinning.a_core_each(Crowd()) as held:
        assert not held and pinning.available() == cores


def test_runs_on_any_core_are_compared_with_their_like():
    rows = [
        {"mode": "strong", "stage": "fit", "pinned": pinned, "workers": workers, "stars_per_s": rate}
        for pinned, workers, rate in ((True, 1, 10.0), (True, 2, 19.0), (False, 1, 12.0), (False, 2, 18.0))
    ]
    assert [r["speedup"] for r in scaling.relative(rows)] == [1, 1.9, 1, 1.5]
