"""One way to a client: settings are checked, nothing is open to others, everything is taken down."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import dask
import psutil
import pytest

from chemscale.errors import ClusterError, InputError
from chemscale.runtime import backends, credentials
from chemscale.runtime.backends.batch import batch_options
from chemscale.runtime.backends.local import local_shape
from chemscale.runtime.cluster import check_exposure, connect
from chemscale.runtime.settings import BatchSettings, GpuSettings, LocalSettings, is_loopback, settings_for


def test_settings_from_everything(tmp_path):
    assert settings_for(None) == settings_for("local") == LocalSettings()
    assert settings_for("tls://head:8786").address == "tls://head:8786"
    assert settings_for(str(tmp_path / "scheduler.json")).scheduler_file
    file = tmp_path / "c.toml"
    file.write_text('[cluster]\nkind = "slurm"\nworkers = 4\nmemory = "8 GiB"\ndirectives = ["--exclusive"]\n')
    settings = settings_for(file, workers=9)
    assert (settings.kind, settings.workers, settings.directives) == ("slurm", 9, ("--exclusive",))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('kind = "slrum"', "slrum"),
        ("wrokers = 3", "workers"),
        ('kind = "local"\nwalltime = "1:00"', "kind 'local' has no key 'walltime'"),
        ('kind = "slurm"\nimage = "x"', "kind 'slurm' has no key 'image'"),
        ("workers = 0", "above zero"),
        ('memory = "much"', "not a size"),
        ("cluster = 3", "not a table"),
        ("kind = ", "not valid TOML"),
    ],
)
def test_bad_settings_are_named(tmp_path, text, match):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=match):
        settings_for(str(file))


def test_unknown_spec_and_missing_file():
    with pytest.raises(InputError, match="neither a kind"):
        settings_for("laptop")
    with pytest.raises(InputError, match="no settings file"):
        settings_for("nowhere.toml")


@pytest.mark.parametrize(
    ("cores", "memory", "workers", "threads"),
    [(2, 24e9, 2, 1), (16, 64e9, 16, 1), (64, 512e9, 32, 2), (8, 4e9, 2, 1), (1, 1e9, 1, 1)],
)
def test_shape_of_this_machine(cores, memory, workers, threads):
    shape = local_shape(LocalSettings(), cores, int(memory))
    assert (shape.workers, shape.threads) == (workers, threads)
    assert shape.workers * shape.memory <= memory


def test_loopback():
    assert all(map(is_loopback, ["127.0.0.1:0", "localhost", "tcp://127.0.0.1:3", "tls://[::1]:5"]))
    assert not any(map(is_loopback, ["0.0.0.0:0", "10.0.0.1", "tls://head:1", ":8787", ""]))


def test_open_dashboard_and_batch_without_tls_are_refused(caplog):
    with pytest.raises(ClusterError, match="every interface"):
        check_exposure(LocalSettings(dashboard=":8787"))
    with pytest.raises(ClusterError, match="every interface"):
        check_exposure(LocalSettings(dashboard="0.0.0.0:8787"))
    with pytest.raises(ClusterError, match="run code as you"):
        check_exposure(BatchSettings(kind="slurm", tls=False))
    with caplog.at_level(logging.WARNING, "chemscale"):
        check_exposure(BatchSettings(kind="slurm"))
    assert "scheduler listens on" in caplog.text


def listeners(pids: set[int]) -> set[str]:
    """Addresses the processes listen on, as the kernel tells."""
    text = subprocess.run(["ss", "-H", "-ltnp"], capture_output=True, text=True, check=True).stdout
    found = set()
    for line in text.splitlines():
        if any(f"pid={pid}," in line for pid in pids):
            found.add(line.split()[3])
    return found


def family() -> set[int]:
    me = psutil.Process()
    return {me.pid} | {c.pid for c in me.children(recursive=True)}


needs_ss = pytest.mark.skipif(subprocess.run(["which", "ss"], capture_output=True).returncode != 0, reason="no `ss`")


@needs_ss
def test_nothing_listens_beyond_loopback(client):
    found = listeners(family())
    assert len(found) >= 5, "scheduler, dashboard, two workers and their nannies"
    assert all(is_loopback(a) for a in found), found
    assert client.scheduler.address.startswith("tls://127.0.0.1:")


def test_a_client_without_the_certificate_is_refused(client, tmp_path):
    address = client.scheduler.address
    with pytest.raises(ClusterError, match="no credentials are given"), connect(address, timeout=3):
        pass
    with pytest.raises(ClusterError, match="no scheduler answers"), connect(address.replace("tls", "tcp"), timeout=2):
        pass
    other = credentials.write(tmp_path / "other")
    with pytest.raises(ClusterError, match="no scheduler answers"), connect(address, tls=str(other), timeout=2):
        pass
    assert client.submit(sum, [1, 2]).result() == 3


def test_blas_threads_and_scratch_of_workers(client):
    env = client.run(lambda: (os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]))
    assert set(env.values()) == {("1", "1")}
    folders = client.run(lambda dask_worker: dask_worker.local_directory)
    assert all("chemscale-" in f for f in folders.values())


def test_credentials_are_private(tmp_path):
    made = credentials.write(tmp_path / "tls")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in made.iterdir()} == {0o600}
    with pytest.raises(ClusterError, match="already holds a key"):
        credentials.write(made)
    (made / "key.pem").chmod(0o644)
    with pytest.raises(ClusterError, match="read by others"):
        credentials.read(made)
    with pytest.raises(ClusterError, match=r"cert.pem, key.pem missing"):
        credentials.read(tmp_path / "nothing")


def test_temporary_credentials_go_away(tmp_path):
    made = credentials.temporary(tmp_path)
    assert credentials.read(made).require_encryption
    credentials.discard(made)
    assert not made.exists()


def test_no_credential_in_process_arguments_or_environment(client):
    """`ps` shows paths at most; nothing that looks like a key."""
    for pid in family():
        process = psutil.Process(pid)
        text = " ".join(process.cmdline()) + " ".join(process.environ().values())
        assert "PRIVATE KEY" not in text


def test_address_joins_a_running_scheduler(tmp_path):
    """A scheduler and a supervised worker as processes of their own, TLS from a directory, joined by address."""
    tls = credentials.write(tmp_path / "tls")
    files = ["--tls-ca-file", tls / "cert.pem", "--tls-cert", tls / "cert.pem", "--tls-key", tls / "key.pem"]
    scheduler_file = tmp_path / "scheduler.json"
    common = [*map(str, files), "--scheduler-file", str(scheduler_file)]
    head = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "tls://127.0.0.1", "--port", "0"]
    work = [sys.executable, "-m", "chemscale.runtime.supervise", "--host", "tls://127.0.0.1", "--nthreads", "1"]
    with open(tmp_path / "log", "w") as log:
        started = [
            subprocess.Popen([*head, "--no-dashboard", *common], stdout=log, stderr=log),
            subprocess.Popen([*work, "--no-dashboard", "--no-nanny", *common], stdout=log, stderr=log),
        ]
        try:
            while not scheduler_file.exists():
                time.sleep(0.1)
            address = json.loads(scheduler_file.read_text())["address"]
            with connect(address, tls=str(tls), timeout=60) as c:
                assert c.submit(sum, [1, 2]).result() == 3
                assert backends.describe(c)["encrypted"]
            with connect(str(scheduler_file), tls=str(tls), timeout=60) as c:
                first = c.submit(os.getpid, pure=False).result()
                os.kill(first, 9)  # the supervisor starts another
                c.wait_for_workers(1, timeout=60)
                assert c.submit(os.getpid, pure=False).result(timeout=60) != first
        finally:
            for process in reversed(started):
                process.terminate()
            assert started[1].wait(30) == 0, "an orderly end is a success"
            started[0].wait(30)


def test_no_scheduler_is_a_clear_error():
    with pytest.raises(ClusterError, match="no scheduler answers"), connect("tcp://127.0.0.1:1", timeout=1):
        pass


SCRIPT = """
import sys, time
sys.path.insert(0, {here!r})
if __name__ == "__main__":
    import faultwork
    from pathlib import Path
    from chemscale.runtime.cluster import connect
    from chemscale.runtime.shards import map_shards
    out = Path({out!r})
    done = (out / "ledger").read_text().split() if (out / "ledger").exists() else []
    def mark(key, result):
        with open(out / "ledger", "a") as f:
            f.write(key + "\\n")
    with connect("local", workers=2, threads=1, memory="500 MiB") as client:
        (out / "up").touch()
        report = map_shards(faultwork.write, faultwork.items(out, 40, sleep=0.15), client, done=done, on_result=mark)
    print(report.done, report.skipped)
"""


@pytest.mark.parametrize("signal_name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_stop_resumes(tmp_path, signal_name):
    """Walltime: at most one shard a worker is done again, no process is left behind, no scratch either."""
    import signal

    import faultwork

    script = tmp_path / "job.py"
    out = tmp_path / "out"
    out.mkdir()
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent), out=str(out)))
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True)
    ledger = out / "ledger"
    while not ledger.exists() or len(ledger.read_text().split()) < 8:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(getattr(signal, signal_name))
    assert process.wait(30) != 0
    process.stderr.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not [f for f in (tmp_path / "tmp").iterdir() if f.name.startswith("chemscale-")]
    marked, begun = ledger.read_text().split(), faultwork.attempts(out)
    assert len(begun) - len(marked) <= 2
    rest = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=280)
    assert rest.stdout.split() == [str(40 - len(marked)), str(len(marked))], rest.stderr
    faultwork.check(out, 40)
    again = [s for s in set(faultwork.attempts(out)) if faultwork.attempts(out).count(s) > 1]
    assert len(again) <= 2, "at most one shard a worker"


def test_mixed_gpu_and_cpu_workers(tmp_path):
    """GPU workers and CPU workers side by side: each sees its device, work goes where its resource is."""
    settings = GpuSettings(kind="gpu", workers=1, devices=(0,), memory="500 MiB")
    with connect(settings) as c:
        c.wait_for_workers(2, timeout=60)
        see = lambda: os.environ.get("CUDA_VISIBLE_DEVICES")  # noqa: E731
        assert c.submit(see, resources={"GPU": 1}, pure=False).result() == "0"
        assert c.submit(see, resources={"CPU": 1}, pure=False).result() == ""
        assert backends.describe(c)["gpu_workers"] == 1


@pytest.mark.gpu
def test_gpu_cluster():
    """dask-cuda's own cluster: a worker a device, torch sees it."""
    pytest.importorskip("dask_cuda")
    with connect("gpu") as c:
        see = c.submit(lambda: __import__("torch").cuda.is_available(), resources={"GPU": 1})
        assert see.result()


def test_batch_options_cover_the_keys():
    settings = settings_for(
        {
            "kind": "slurm", "workers": 2, "processes": 4, "threads": 2, "memory": "32 GiB", "queue": "cpu",
            "account": "a1", "walltime": "02:00:00", "lifetime": "110 minutes", "interface": "ib0",
            "directives": ["--constraint=skylake"], "prologue": ["module load x"],
        }
    )  # fmt: skip
    options = batch_options(settings)
    assert (options["cores"], options["processes"], options["queue"]) == (8, 4, "cpu")
    assert options["worker_extra_args"] == [
        "--no-dashboard", "--lifetime", "110minutes", "--lifetime-stagger", "2minutes", "--nworkers", "4",
    ]  # fmt: skip
    assert "module load x" in options["job_script_prologue"]


@pytest.mark.parametrize("kind", ["slurm", "pbs", "sge", "lsf", "oar", "moab"])
def test_every_batch_system_takes_the_same_keys(kind, tmp_path):
    """The job script each system would be given: supervised worker, certificate by path, no key inside."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    names = {"slurm": "SLURM", "pbs": "PBS", "sge": "SGE", "lsf": "LSF", "oar": "OAR", "moab": "Moab"}
    tls = credentials.write(tmp_path / "tls")
    settings = settings_for({"kind": kind, "walltime": "00:10:00", "queue": "q", "interface": "lo", "tls": str(tls)})
    options = batch_options(settings) | {"security": credentials.read(tls)}
    with getattr(jobqueue, names[kind] + "Cluster")(**options) as cluster:
        script = cluster.job_script()
    assert "-m chemscale.runtime.supervise tls://" in script
    assert str(tls / "key.pem") in script and "PRIVATE KEY" not in script
    assert "OMP_NUM_THREADS=1" in script


def test_a_script_without_a_guard_is_told_so(tmp_path):
    """Worker processes import the script that starts them."""
    script = tmp_path / "script.py"
    script.write_text("from chemscale.runtime.cluster import connect\nwith connect(workers=1, threads=1):\n    pass\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert done.returncode and "a script needs `if __name__ == '__main__':`" in done.stderr


@pytest.mark.slow
def test_a_worker_that_takes_its_time_to_start_again_is_not_given_up(tmp_path):
    """Dask looks once, 15 seconds after a worker was lost, and closes its nanny if nothing is there at that moment."""
    wait = tmp_path / "wait"
    slowly = f"import os, time; time.sleep(20) if os.path.exists({str(wait)!r}) else None"
    with dask.config.set({"distributed.worker.preload": [slowly]}), connect("local", workers=1, threads=1) as client:
        (pid,) = client.run(os.getpid).values()
        wait.touch()
        os.kill(pid, signal.SIGKILL)
        assert client.submit(os.getpid, pure=False).result(timeout=90) != pid
