"""Shared fixtures. Real data lives beside the checkout and is optional."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def find_shared_data() -> Path | None:
    """The folder of real and synthetic test data: $CHEMSCALE_TEST_DATA or ../shared/data."""
    named = os.environ.get("CHEMSCALE_TEST_DATA")
    candidates = [Path(named)] if named else []
    candidates.append(Path(__file__).resolve().parents[2] / "shared" / "data")
    return next((c for c in candidates if c.is_dir()), None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real LAMOST/APOGEE files and emulators; skips where it is absent."""
    found = find_shared_data()
    if found is None:
        pytest.skip("no test data: set CHEMSCALE_TEST_DATA or put it at ../shared/data")
    return found
