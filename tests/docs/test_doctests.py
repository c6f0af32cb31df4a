"""Every public name has an example in its docstring, and every example runs."""

from __future__ import annotations

import doctest
import inspect

import pytest

import chemscale

NAMES = sorted(set(chemscale.__all__) - {"__version__"})
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = getattr(chemscale, name)
    if name == "from_spectra":
        pytest.importorskip("specutils", reason="needs the extra `spectra`")
    found = doctest.DocTestParser().get_doctest(inspect.getdoc(thing) or "", {}, name, None, 0)
    assert found.examples, f"{name} has no example"
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=OPTIONS).run(found, out=told.append)
    assert result.failed == 0, "".join(told)
