"""A real Slurm on this machine, for tests: munged, slurmctld and one slurmd, bound to loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port1}
SlurmdPort={port2}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=5
MinJobAge=60
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=gpu Nodes={host} MaxTime=1-00:00:00 State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; '' when it can."""
    if os.geteuid() != 0:
        return "starting a Slurm node needs root"
    lacking = [p for p in PROGRAMS if shutil.which(p) is None]
    return f"not installed: {', '.join(lacking)} (apt-get install slurm-wlm munge)" if lacking else ""


def free_ports(n: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class SlurmNode:
    """Controller and compute node; `cpus` may exceed the machine's (the jobs of tests are small)."""

    def __init__(self, directory: Path, cpus: int = 8):
        self.dir = directory
        self.cpus = cpus
        self.conf = directory / "slurm.conf"
        self.daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.dir / name).mkdir(parents=True, exist_ok=True)
        port1, port2 = free_ports(2)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
        host = socket.gethostname().split(".")[0]
        self.conf.write_text(
            CONF.format(dir=self.dir, host=host, port1=port1, port2=port2, cpus=self.cpus, memory=memory)
        )
        # two pretended GPUs (any two device files), so that --gres is exercised without one
        (self.dir / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        key = self.dir / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        munged = ["munged", "--force", "--foreground", "--socket", f"{self.dir}/munge.socket", "--key-file", str(key)]
        munged += ["--pid-file", f"{self.dir}/munge.pid", "--seed-file", f"{self.dir}/munge.seed"]
        self._run("munged", [*munged, "--log-file", f"{self.dir}/munge.log"])
        self._until(lambda: (self.dir / "munge.socket").exists(), "munged")
        self._run("slurmctld", ["slurmctld", "-D", "-c", "-f", str(self.conf)])
        self._run("slurmd", ["slurmd", "-D", "-c", "-f", str(self.conf), "-N", host])
        self._until(lambda: "idle" in self.call("sinfo", "-h", "-o", "%t", check=False), "the node to be idle")

    def _run(self, name: str, command: list[str]) -> None:
        with open(self.dir / f"{name}.out", "w") as log:
            self.daemons.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, start_new_session=True)
            )

    def _until(self, condition, what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f.read_text(errors="replace")[-1500:] for f in self.dir.glob("*.out"))
                raise RuntimeError(f"Slurm: waited {seconds} s for {what}\n{logs}")
            time.sleep(0.2)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def call(self, *command: str, check: bool = True) -> str:
        """Output of a Slurm command."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}")
        return done.stdout

    def jobs(self, state: str = "RUNNING") -> list[str]:
        """Ids of jobs in `state`."""
        return self.call("squeue", "-h", "-t", state, "-o", "%i").split()

    def wait(self, job: str, seconds: float = 300) -> str:
        """Wait for a job to end; its final state."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            text = self.call("scontrol", "show", "job", job, check=False)
            state = next((w.split("=")[1] for w in text.split() if w.startswith("JobState=")), "GONE")
            if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
                return state
            time.sleep(0.5)
        raise RuntimeError(f"job {job} still there after {seconds} s:\n{text}")

    def stop(self) -> None:
        if len(self.daemons) == 3:
            self.call("scancel", "--full", "--user=root", check=False)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and self.call("squeue", "-h", check=False).strip():
                time.sleep(0.3)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
