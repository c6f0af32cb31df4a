"""The command line in this process, as its entry point runs it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from chemscale.cli import main


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def chemscale(monkeypatch, capsys):
    """Run one command line; returns exit status, stdout and stderr."""

    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["chemscale", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run
