"""`chemscale slurm`: a whole job script, and failures that come at once in their own words."""

from __future__ import annotations

import subprocess
import time

import pytest
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.errors import ClusterError, InputError
from chemscale.runtime.backends import batch, common
from chemscale.runtime.cluster import connect
from chemscale.runtime.settings import BatchSettings, from_mapping

FIT = ("--", "rsca", "fit", "survey.zarr", "--run", "run")


def slurm(*words):
    return CliRunner().invoke(build(), ["slurm", *words])


def test_script_of_four_nodes_is_whole_and_bash_takes_it():
    done = slurm("--nodes", "4", "--cpus", "8", "--memory", "32 GiB", "--time", "1-00:00:00", "--print", *FIT)
    assert done.exit_code == 0, done.output
    assert "#SBATCH --nodes=4" in done.stdout and "#SBATCH --mem=32768M" in done.stdout
    assert 'chemscale rsca fit survey.zarr --run run --cluster "$dir/cluster.toml"' in done.stdout
    assert "--workers 8" in done.stdout and "--lifetime 1435minutes" in done.stdout
    checked = subprocess.run(["bash", "-n"], input=done.stdout, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_script_of_a_workers_job_is_what_the_cluster_table_says(tmp_path):
    pytest.importorskip("dask_jobqueue")
    file = tmp_path / "slurm.toml"
    file.write_text('[cluster]\nkind = "slurm"\nqueue = "cpu"\ncores = 4\nprocesses = 4\nmemory = "16 GiB"\n')
    done = slurm("--cluster", str(file), "--print")
    assert done.exit_code == 0 and "#SBATCH -p cpu" in done.stdout and "--nworkers 4" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--print",), "no command"),
        (("--print", "--", "rsca", "fitt"), "no verb 'fitt'"),
        (("--print", "--", "report", "--run", "run"), "takes no --cluster"),
        (("--print", "--time", "two hours", *FIT), "not a walltime"),
        (("--print", "--memory", "much", *FIT), "not a size"),
    ],
)
def test_what_cannot_work_is_refused(words, told):
    done = slurm(*words)
    assert isinstance(done.exception, InputError) and told in str(done.exception)


def test_a_missing_sbatch_is_said_at_once(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    done = slurm("--nodes", "2", *FIT)
    assert isinstance(done.exception, ClusterError) and "sbatch is not on the PATH" in str(done.exception)
    with pytest.raises(ClusterError, match="sbatch is not on the PATH"):
        batch.check(BatchSettings(workers=2))


def test_a_wrong_interface_is_said_with_those_there_are(monkeypatch):
    monkeypatch.setattr(batch.shutil, "which", lambda name: "/bin/true" if name == "sbatch" else None)
    with pytest.raises(ClusterError, match="no network interface 'ib7'") as caught:
        batch.check(from_mapping({"kind": "slurm", "interface": "ib7"}))
    assert "lo" in caught.value.remedy


def test_a_controller_that_does_not_answer_is_said(monkeypatch, tmp_path):
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Slurmctld(primary) at head is DOWN'\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="head is DOWN"):
        batch.check(BatchSettings())


def test_an_unreachable_scheduler_fails_within_ten_seconds(tmp_path, monkeypatch):
    start = time.monotonic()
    with pytest.raises(ClusterError, match="no scheduler answers"), connect("tcp://127.0.0.1:9"):
        pass
    monkeypatch.setattr("chemscale.runtime.backends.address.REACH", 0.3)
    missing = {"kind": "address", "scheduler_file": str(tmp_path / "none.json")}
    with pytest.raises(ClusterError, match="no scheduler has written"), connect(missing):
        pass
    assert time.monotonic() - start < 10


def test_waiting_for_queued_jobs_is_said_after_ten_seconds(monkeypatch, caplog):
    monkeypatch.setattr(common, "TOLD_AFTER", 0.05)

    class Nobody:
        def wait_for_workers(self, n, timeout):
            time.sleep(timeout)
            raise TimeoutError

    with pytest.raises(ClusterError, match="4 slurm jobs queued"):
        common.wait_for_workers(Nobody(), 1, 0.2, lambda: "4 slurm jobs queued")
    assert "4 slurm jobs queued, no worker yet after 0 s" in caplog.text
