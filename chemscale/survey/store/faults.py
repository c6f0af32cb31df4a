"""What is wrong with a store, as :mod:`chemscale.survey.store.verify` finds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a store."""

    #: file below the store
    file: str
    what: str
    #: rows it concerns, ``[start, stop)``
    stars: tuple[int, int] | None = None
    #: chunk within the file
    chunk: int | None = None
    #: identifiers of the first and last star concerned
    star_ids: tuple[str, str] | None = None
    #: the group of arrays: that of the first revision ('') or a later one
    group: str = ""
    shard: int | None = None

    def __str__(self) -> str:
        text = f"{self.group + '/' if self.group else ''}{self.file}"
        if self.chunk is not None:
            text += f", chunk {self.chunk}"
        if self.stars is not None:
            text += f", stars {self.stars[0]} to {self.stars[1] - 1}"
        if self.star_ids is not None:
            text += f" ({self.star_ids[0]} .. {self.star_ids[1]})"
        return f"{text}: {self.what}"


@dataclass
class VerifyReport:
    """What :func:`verify` found."""

    path: str
    faults: list[Fault] = field(default_factory=list)
    n_files: int = 0
    n_bytes: int = 0
    n_stars: int = 0
    #: faults that `repair` mended
    repaired: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing is wrong (any more)."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"ok": self.ok, **asdict(self), "messages": [str(f) for f in self.faults]}
