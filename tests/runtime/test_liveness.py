"""Waiting for a cluster has an end: the scheduler gone, or no worker, each after its own time."""

from __future__ import annotations

import time

import dask
import pytest

from chemscale.errors import ClusterError
from chemscale.runtime import blocks as block_groups
from chemscale.runtime.liveness import Liveness


class Scheduler:
    def identity(self, n_workers: int) -> dict:
        raise NotImplementedError  # only named, never called


class Client:
    """What a client tells: a status, and an identity or no answer."""

    def __init__(self):
        self.status, self.scheduler = "running", Scheduler()
        self.info: dict | None = {"total_threads": 4, "workers": {}}

    def sync(self, question, callback_timeout, **arguments):
        assert question == self.scheduler.identity and callback_timeout
        if self.info is None:
            raise TimeoutError
        return self.info


def test_threads_and_resources():
    client = Client()
    assert Liveness(client).slots() == 4
    client.info["workers"] = {
        "a": {"nthreads": 4, "resources": {"GPU": 1}},
        "b": {"nthreads": 2, "resources": {"GPU": 4}},
        "c": {"nthreads": 8, "resources": {}},
    }
    assert Liveness(client, {"GPU": 1}).slots() == 1 + 2


@pytest.mark.parametrize("how", ["silent", "connecting"])
def test_a_scheduler_that_is_gone(how):
    client = Client()
    watch = Liveness(client, lost_after=0.2, stall_after=100)
    assert watch.slots() == 4
    if how == "silent":
        client.info = None
    else:
        client.status = "connecting"
    assert watch.slots() == 0, "not at once"
    time.sleep(0.1)
    client.info, client.status = {"total_threads": 4}, "running"
    assert watch.slots() == 4, "back in time"
    client.info = None
    time.sleep(0.1)
    assert watch.slots() == 0, "counted from its last answer"
    time.sleep(0.2)
    with pytest.raises(ClusterError, match="scheduler is lost; 7 shards are done"):
        watch.slots("7 shards are done")


def test_a_closed_client_and_no_worker():
    client = Client()
    client.status = "closed"
    with pytest.raises(ClusterError, match="scheduler is lost"):
        Liveness(client).slots()
    client.status, client.info = "running", {"total_threads": 0}
    watch = Liveness(client, stall_after=0.1)
    assert watch.slots() == 0
    time.sleep(0.15)
    with pytest.raises(ClusterError, match=r"no worker for 0 s"):
        watch.slots()


def test_a_pass_without_workers_ends(client, monkeypatch):
    """Dask itself would wait for ever."""
    monkeypatch.setattr(block_groups, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(block_groups, "Liveness", lambda c: Liveness(c, stall_after=0.5))
    nobody = dask.delayed(sum, pure=False)([1, 2])
    with dask.annotate(workers=["tls://127.0.0.1:1"], allow_other_workers=False):
        stuck = dask.delayed(sum, pure=False)([1, 2])
    assert block_groups.compute_sum(nobody) == 3
    monkeypatch.setattr(Liveness, "_count", lambda self, info: 0)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match="no worker for"):
        block_groups.compute_sum(stuck)
    assert time.monotonic() - begun < 10
    assert block_groups.compute_sum(dask.delayed(sum, pure=False)([3, 4])) == 7
