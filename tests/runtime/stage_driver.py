"""Runs stages inside a network namespace for the tests of this folder: a line of JSON in, lines out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

WORKERS = 2


def main(cluster: dict) -> None:
    """``{"stage", "folder", "out", "delay"}`` in; ``reading``, then ``{"error", "workers"}`` out."""
    from stagework import Running

    from chemscale.runtime.cluster import connect

    with connect(cluster) as client:
        client.wait_for_workers(WORKERS, timeout=200)
        print("ready", flush=True)
        for line in sys.stdin:
            job = json.loads(line)
            running = Running(job["stage"], Path(job["folder"]), Path(job["out"]), client, delay=job["delay"])
            running.until_reading()
            print("reading", flush=True)
            error = running.wait(300)
            client.wait_for_workers(WORKERS, timeout=120)
            print(json.dumps({"error": repr(error) if error else ""}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main(json.loads(sys.argv[1]))
