"""SIGTERM in the middle of embedding and inference (a walltime): ends in time, and little is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import stagework

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
if __name__ == "__main__":
    import stagework
    import chemscale
    from chemscale.runtime.cluster import connect
    stage, folder, out, delay = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    with connect("local", workers=2, threads=1, memory="1 GiB") as client:
        client.register_plugin(stagework.Trouble(str(out), stage, delay=delay))
        ds = chemscale.open_survey(folder / "survey.zarr", chunk_stars=stagework.BLOCK)
        if stage == "embed":
            stagework.embed(ds, folder, out)
        else:
            stagework.infer(ds, folder, out, client)
"""
#: Of the 120 s the scripts of deploy/slurm ask for.
NOTICE = 30


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    stagework.prepare(folder)
    return folder


@pytest.mark.parametrize("stage", ["embed", "infer"])
def test_sigterm_then_resume(work, tmp_path, stage):
    here, out = Path(__file__).resolve().parent, tmp_path / "out"
    out.mkdir()
    script = tmp_path / "job.py"
    script.write_text(SCRIPT.format(path=[str(here), str(here.parent)]))
    command = [sys.executable, str(script), stage, str(work), str(out)]
    process = subprocess.Popen([*command, "0.4"], stderr=subprocess.PIPE, text=True)
    product = stagework.Product(stage, out)
    while len(product.finished()) < 5:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(NOTICE) != 0
    process.stderr.close()
    assert not psutil.wait_procs(children, timeout=10)[1]
    kept, begun = product.finished(), (out / "begun").read_text().split()
    assert len(begun) - len(kept) <= 2, "a part for each worker"
    done = subprocess.run([*command, "0"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    stagework.check(stage, work, out)
    assert kept.items() <= product.finished().items(), "what was done is not done again"
    parts = (out / "begun").read_text().split()
    assert len(parts) - len(set(parts)) <= 2
