"""One local cluster for the tests of this folder that leave it whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chemscale.runtime.cluster import connect

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:  # workers inherit sys.path: they import `faultwork` from here
    sys.path.insert(0, HERE)


@pytest.fixture(scope="module")
def client():
    """A client of two local worker processes."""
    with connect("local", workers=2, threads=1, memory="1 GiB") as c:
        yield c
