"""Hosts on one machine: network namespaces on a bridge, and the faults a network can have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CLI = [sys.executable, "-m", "chemscale"]


def missing() -> str:
    """Why namespaces cannot be made here; '' when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [p for p in ("ip", "iptables") if shutil.which(p) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    probe = subprocess.run(["ip", "netns", "add", "chemprobe"], capture_output=True, text=True)
    if probe.returncode:
        return f"no network namespaces: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "chemprobe"], capture_output=True)
    return ""


def sh(*command: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=check, capture_output=True, text=True)


class Hosts:
    """Namespaces ``chem0`` ... on the bridge ``chembr``; addresses 10.213.77.(i+1)."""

    def __init__(self, n: int):
        self.names = [f"chem{i}" for i in range(n)]

    def __enter__(self) -> Hosts:
        self.close()
        sh("ip", "link", "add", "chembr", "type", "bridge")
        sh("ip", "link", "set", "chembr", "up")
        for i, name in enumerate(self.names):
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", f"{name}-b", "type", "veth", "peer", "name", "net0", "netns", name)
            sh("ip", "link", "set", f"{name}-b", "master", "chembr", "up")
            self.inside(name, "ip", "addr", "add", f"10.213.77.{i + 1}/24", "dev", "net0")
            self.inside(name, "ip", "link", "set", "net0", "up")
            self.inside(name, "ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for name in self.names:
            sh("ip", "netns", "del", name, check=False)
            sh("ip", "link", "del", f"{name}-b", check=False)
        sh("ip", "link", "del", "chembr", check=False)

    def inside(self, name: str, *command: str) -> None:
        sh("ip", "netns", "exec", name, *command)

    def popen(self, name: str, *command: str, **options) -> subprocess.Popen:
        return subprocess.Popen(["ip", "netns", "exec", name, *command], **options)

    def fault(self, kind: str, name: str) -> None:
        """Begin a fault of host `name`: link (down), loss (20 % of its packets), blackhole (all of them, silently)."""
        if kind == "link":
            sh("ip", "link", "set", f"{name}-b", "down")
        elif kind == "loss":
            rule = ["-m", "statistic", "--mode", "random", "--probability", "0.2", "-j", "DROP"]
            self.inside(name, "iptables", "-A", "INPUT", *rule)
        else:
            for chain in ("INPUT", "OUTPUT"):
                self.inside(name, "iptables", "-A", chain, "-i" if chain == "INPUT" else "-o", "net0", "-j", "DROP")

    def heal(self, kind: str, name: str) -> None:
        """End it."""
        if kind == "link":
            sh("ip", "link", "set", f"{name}-b", "up")
        else:
            self.inside(name, "iptables", "-F")


class HostCluster:
    """A scheduler on the first host and a supervised worker on each of the others, as a user starts them."""

    def __init__(self, net: Hosts, folder: Path, path: list[str]):
        from chemscale.runtime import credentials

        self.net, self.folder = net, folder
        self.tls, self.file, self.log = credentials.write(folder / "tls"), folder / "scheduler.json", folder / "log"
        self.environment = {
            "PYTHONPATH": os.pathsep.join(path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.started: list[subprocess.Popen] = []
        common = ["--tls", str(self.tls), "--scheduler-file", str(self.file), "--interface", "net0"]
        self.run(net.names[0], *CLI, "cluster", "scheduler", *common)
        for host in net.names[1:]:
            more = ["--death-timeout", "15", "--memory", "1 GiB", "--local-directory", str(folder / host)]
            self.run(host, *CLI, "cluster", "worker", *common, *more)

    @property
    def settings(self) -> dict:
        """The `[cluster]` table of a client."""
        return {"kind": "address", "scheduler_file": str(self.file), "tls": str(self.tls), "timeout": 120}

    def run(self, host: str, *command: str, **options) -> subprocess.Popen:
        """A process on a host; its output goes to the log."""
        with open(self.log, "a") as log:
            process = self.net.popen(
                host, *command, **({"stdout": log, "stderr": log, "env": self.environment} | options)
            )
        self.started.append(process)
        return process

    def until(self, condition, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def stop(self) -> None:
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
