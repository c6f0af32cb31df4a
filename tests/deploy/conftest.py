"""A Slurm of our own for the tests marked `slurm`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "runtime"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

REPOSITORY = HERE.parents[1]


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The folder of files a user copies."""
    return REPOSITORY / "deploy"


@pytest.fixture(scope="module")
def slurm():
    """A running single-node Slurm, its configuration in the environment of this process."""
    import slurm_node

    reason = slurm_node.missing()
    if reason:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    node = slurm_node.SlurmNode(directory)
    patch = pytest.MonkeyPatch()
    try:
        try:
            node.start()
        except RuntimeError as err:  # its daemons, not chemscale
            pytest.skip(f"Slurm is installed but does not start here: {str(err)[:300]}")
        patch.setenv("SLURM_CONF", str(node.conf))
        # the tests' own modules, for the workers that Slurm starts
        path = [str(HERE.parent / "runtime"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        yield node
    finally:
        patch.undo()
        node.stop()
        shutil.rmtree(directory, ignore_errors=True)
