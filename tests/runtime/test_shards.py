"""map_shards: complete, bounded, resumable, and blaming the right shard."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import signal
import threading
import time

import faultwork
import pytest

from chemscale.errors import ClusterError
from chemscale.runtime.cluster import Terminated, connect
from chemscale.runtime.outcome import ShardFailure, ShardsFailed
from chemscale.runtime.shards import map_shards, per_worker


def square(x: int) -> int:
    return x * x


@pytest.mark.parametrize("parallel", [False, True])
def test_results_and_skipping(client, parallel):
    report = map_shards(square, range(30), client if parallel else None, done={3, 4})
    assert report.results == {i: i * i for i in range(30) if i not in (3, 4)}
    assert (report.total, report.done, report.skipped, report.failures) == (30, 28, 2, [])


def test_each_result_is_handed_over_once(client):
    seen = []
    report = map_shards(square, {"a": 2, "b": 3}, client, on_result=lambda k, r: seen.append((k, r)))
    assert sorted(seen) == [("a", 4), ("b", 9)]
    assert report.results == {}


@pytest.mark.parametrize("parallel", [False, True])
def test_results_nobody_wants_stay_where_they_are(client, parallel):
    seen = []
    report = map_shards(
        square, range(9), client if parallel else None, results=False, on_result=lambda k, r: seen.append((k, r))
    )
    assert sorted(seen) == [(i, None) for i in range(9)] and report.done == 9


def test_results_that_do_not_come_together_come_one_by_one(client, monkeypatch):
    """As when a worker is lost between the end of its shard and the fetching of the result."""
    tried, sync = [], client.sync

    def lost(function, *arguments, **more):
        if function == client._gather:
            tried.append(len(arguments[0]))
            raise OSError("gone")
        return sync(function, *arguments, **more)

    monkeypatch.setattr(client, "sync", lost)
    assert map_shards(square, range(12), client).results == {i: i * i for i in range(12)}
    assert sum(tried) == 12


@pytest.mark.parametrize("parallel", [False, True])
def test_transient_error_is_retried(client, parallel, tmp_path):
    items = faultwork.items(tmp_path, 6, flaky=(1, 4))
    report = map_shards(faultwork.write, items, client if parallel else None)
    assert (report.done, report.retried, report.failures) == (6, 2, [])
    faultwork.check(tmp_path, 6)


@pytest.mark.parametrize("parallel", [False, True])
def test_bad_data_is_not_retried_and_the_rest_completes(client, parallel, tmp_path):
    report = map_shards(faultwork.write, faultwork.items(tmp_path, 6, bad=(2,)), client if parallel else None)
    assert report.done == 5
    assert faultwork.attempts(tmp_path).count(2) == 1
    faultwork.check(tmp_path, 6, missing=(2,))
    with pytest.raises(ShardsFailed, match=r"shard-002.*the grid is wrong") as caught:
        report.raise_for_failures()
    assert caught.value.remedy == "give it another"
    assert pickle.loads(pickle.dumps(caught.value)).failures == [
        ShardFailure("shard-002", "error", 1, "shard 2: the grid is wrong", "give it another")
    ]


def test_policy_stop_ends_at_the_first_failure(tmp_path):
    with pytest.raises(ShardsFailed, match="shard-001"):
        map_shards(faultwork.write, faultwork.items(tmp_path, 4, bad=(1,)), policy="stop")
    assert faultwork.attempts(tmp_path) == [0, 1]


def test_retries_are_bounded():
    def fails(x):
        raise OSError("always")

    report = map_shards(fails, [7], retries=2)
    assert [(f.key, f.kind, f.attempts) for f in report.failures] == [(7, "error", 3)]


def test_in_flight_is_bounded(client):
    """Never more shards in the scheduler than asked for: its memory does not grow with the survey."""
    most = 0

    def look(key, result):
        nonlocal most
        most = max(most, client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

    map_shards(square, range(60), client, on_result=look)
    assert 1 <= most <= 6


def test_an_interrupt_hands_over_what_is_finished(client, tmp_path):
    handed = []

    def on_result(key, result):
        handed.append(key)
        if len(handed) == 5:
            raise Terminated("SIGTERM")

    with pytest.raises(Terminated):
        map_shards(faultwork.write, faultwork.items(tmp_path, 40, sleep=0.05), client, on_result=on_result)
    begun = len(faultwork.attempts(tmp_path))
    assert begun - len(handed) <= 2 + 1  # one a worker, and the one whose hand-over was interrupted
    rest = map_shards(faultwork.write, faultwork.items(tmp_path, 40), client, done=handed)
    assert rest.done == 40 - len(handed)
    faultwork.check(tmp_path, 40)


def test_an_interrupt_hands_over_what_ended_with_it(client):
    """Shards that end together are dealt with one after the other; none of them is forgotten in between."""
    handed = []

    def on_result(key, result):
        handed.append(key)
        if len(handed) == 1:
            time.sleep(0.3)  # the others of the first four end
        if len(handed) == 3:
            raise Terminated("SIGTERM")

    with pytest.raises(Terminated):
        map_shards(square, range(4), client, on_result=on_result)
    assert sorted(handed) == [0, 1, 2, 3]


def test_per_worker_loads_once():
    made = []
    for _ in range(3):
        assert per_worker(("model", __name__), lambda: made.append(1) or "model") == "model"
    assert made == [1]


@pytest.fixture()
def mortal(tmp_path):
    """A cluster of its own for tests that harm it; scheduler in this process."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with connect("local", workers=2, threads=1, memory="700 MiB") as c:
        yield c


def test_kill_9_of_a_worker(mortal, tmp_path):
    items = faultwork.items(tmp_path, 16, sleep=0.1, kill_once=(3,))
    report = map_shards(faultwork.write, items, mortal).raise_for_failures()
    assert report.done == 16
    faultwork.check(tmp_path, 16)


@pytest.mark.slow
def test_poison_is_named_and_the_rest_completes(mortal, tmp_path):
    items = faultwork.items(tmp_path, 20, sleep=0.05, poison=(7,))
    report = map_shards(faultwork.write, items, mortal)
    assert [(f.key, f.kind) for f in report.failures] == [("shard-007", "killed")]
    assert report.done == 19
    assert faultwork.attempts(tmp_path).count(7) <= 10, "bounded"
    faultwork.check(tmp_path, 20, missing=(7,))
    with pytest.raises(ShardsFailed, match=r"1 of 20 shards.*\n.*shard-007: killed its worker"):
        report.raise_for_failures()


@pytest.mark.slow
def test_worker_out_of_memory(mortal, tmp_path):
    report = map_shards(faultwork.write, faultwork.items(tmp_path, 8, hungry=(2,)), mortal).raise_for_failures()
    assert report.done == 8
    faultwork.check(tmp_path, 8)


def test_no_worker_is_an_error_in_time(mortal):
    mortal.cluster.scale(0)
    with pytest.raises(ClusterError, match="no worker for"):
        map_shards(square, range(3), mortal, stall_timeout=2)


def test_closed_client_is_an_error(mortal):
    threading.Timer(0.5, mortal.close).start()
    with pytest.raises(ClusterError, match=r"lost|closed"):
        map_shards(functools.partial(slow_square, seconds=0.3), range(40), mortal)


def slow_square(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x * x


def test_sigterm_becomes_an_exception():
    from chemscale.runtime.cluster import graceful_signals

    with pytest.raises(Terminated), graceful_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
