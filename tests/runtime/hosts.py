"""Hosts on one machine: network namespaces on a bridge, and the faults a network can have."""

from __future__ import annotations

import os
import shutil
import subprocess


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
