"""Scaling measurements: sizes of graphs, ratios, and a scheduler that is really driven."""

from __future__ import annotations

import pytest

from chemscale.errors import InputError
from chemscale.runtime import saturation, scaling
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
    from chemscale.statistics.embedding import embed_survey, fit_survey
    from chemscale.survey.layout import Layout

    class Count(Callback):
        n = 0

        def _pretask(self, *arguments):
            self.n += 1

    counts = []
    for stars in (900, 1800):
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
    assert (many - few) / (large - small) / passes <= saturation.TASKS_PER_LOT + 0.1


def test_relative_rates():
    rows = [
        {"mode": "strong", "stage": "fit", "workers": 1, "stars_per_s": 10.0},
        {"mode": "strong", "stage": "fit", "workers": 4, "stars_per_s": 30.0},
        {"mode": "weak", "stage": "fit", "workers": 4, "stars_per_s": 7.0},
    ]
    out = scaling.relative(rows)
    assert [r["speedup"] for r in out] == [1, 3, 1]
    assert [r["efficiency"] for r in out] == [1, 0.75, 1]
    assert saturation.busy_fraction(500, 1000, 1000, 5000) == pytest.approx(0.1)


def test_unknown_stage_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown stage"):
        scaling.measure([1], 100, tmp_path, stages=["fitt"])


@pytest.mark.slow
def test_scheduler_alone():
    result = saturation.measure([5], tasks=200)
    assert {r["submit"] for r in result["scheduler"]} == {"shards", "graph"}
    assert all(r["scheduler_cpu_us_per_task"] > 50 and r["tasks_per_s"] > 1 for r in result["scheduler"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_measure_and_plot(tmp_path):
    result = scaling.measure([1], 300, tmp_path / "scratch", stages=["embed", "infer"])
    files = scaling.save(result, tmp_path)
    assert [f.rsplit(".", 1)[1] for f in files] == ["json", "png"]
    assert all(r["seconds"] > 0 and r["worker_peak_bytes"] > 1e7 for r in result["rows"])
