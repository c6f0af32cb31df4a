"""A dependency table from a TOML file: any number of elements, their windows and what each decoder reads.

::

    medium = "vacuum"          # of the windows below
    regions = "apogee"         # a region set, for groups without windows of their own

    [[group]]
    name = "iron"              # a group of the region set, or any name with `windows`
    latent = "Fe"              # an element, or metal, alpha, carbon: then it is evaluated and calibrated

    [[group]]
    name = "magnesium"
    latent = "Mg"
    given = ["Fe"]             # read, never taught
    windows = [[15744.0, 15746.5], [15752.5, 15754.0]]

    [correlations]             # of the prior; 0 where absent
    "Fe-Mg" = -0.2
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from chemscale.config import load_toml
from chemscale.errors import InputError
from chemscale.vae.regions import RegionSet, load_regions


class _GroupRow(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    latent: str
    given: tuple[str, ...] = ()
    given_late: tuple[str, ...] = ()
    given_cool: tuple[str, ...] = ()
    given_warm: tuple[str, ...] = ()
    windows: tuple[tuple[float, float], ...] = ()


class _GroupFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    group: tuple[_GroupRow, ...]
    medium: str = ""
    regions: str = ""
    correlations: dict[str, float] = {}


def read_groups(path: str | Path) -> tuple[dict[str, Any], RegionSet]:
    """Model settings and regions of a groups file.

    Returns
    -------
    (dict, RegionSet)
        `groups` and `correlations` for :class:`~chemscale.vae.config.ModelConfig`, and the windows of the groups.

    Raises
    ------
    InputError
        Unreadable, an unknown key, a group without windows, or windows in another medium than the region set's.
    """
    try:
        found = _GroupFile.model_validate(load_toml(path))
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}", "see `docs/explain/vae.md`") from err
    known = load_regions(found.regions) if found.regions else None
    medium = found.medium or (known.medium if known else "")
    if known is not None and known.medium != medium and any(g.windows for g in found.group):
        raise InputError(f"{path}: windows in {medium}, regions {known.name!r} in {known.medium}", "use one medium")
    windows: dict[str, Any] = {}
    for row in found.group:
        if not row.windows and (known is None or row.name not in known.groups):
            raise InputError(f"{path}: group {row.name!r} has no windows", "give windows, or name a group of `regions`")
        windows[row.name] = row.windows or known.groups[row.name]  # type: ignore[union-attr]
    priority = tuple(p for p in known.priority if p in windows) if known else ()
    regions = RegionSet(Path(path).stem, medium, windows, priority, f"groups file {Path(path).name}")
    rows = [row.model_dump(exclude={"windows"}) for row in found.group]
    return {"groups": rows, "correlations": found.correlations}, regions
