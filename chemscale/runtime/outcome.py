"""What became of the shards of a job: how many are done, which failed, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from chemscale.errors import ChemscaleError


@dataclass(frozen=True)
class ShardFailure:
    """A shard that could not be done. `kind` is 'error' (it raised) or 'killed' (its workers died)."""

    key: Any
    kind: Literal["error", "killed"]
    attempts: int
    message: str
    remedy: str = ""


class ShardsFailed(ChemscaleError):
    """Some shards could not be done; the others were. `failures` names them."""

    def __init__(self, message: str, remedy: str = "", failures: Iterable[ShardFailure] = ()):
        super().__init__(message, remedy)
        self.failures = list(failures)

    def __reduce__(self):
        return type(self), (self.message, self.remedy, self.failures)


@dataclass
class ShardReport:
    """What became of the shards."""

    total: int
    done: int = 0
    skipped: int = 0
    retried: int = 0
    failures: list[ShardFailure] = field(default_factory=list)
    seconds: float = 0.0
    #: results by key, kept only where no `on_result` was given
    results: dict[Any, Any] = field(default_factory=dict)

    def raise_for_failures(self, what: str = "shard") -> ShardReport:
        """Return self, or raise :class:`ShardsFailed` that names every failed shard."""
        if not self.failures:
            return self
        lines = []
        for f in self.failures:
            how = f"killed its worker {f.attempts} times" if f.kind == "killed" else f"failed {f.attempts} times"
            lines.append(f"{what} {f.key}: {how}: {f.message}")
        remedy = next((f.remedy for f in self.failures if f.remedy), "")
        if not remedy:
            killed = any(f.kind == "killed" for f in self.failures)
            remedy = "more memory for each worker, or a look at its input; " if killed else "a look at its input; "
            remedy += "the same command with --resume tries only these again"
        raise ShardsFailed(
            f"{len(self.failures)} of {self.total} {what}s could not be done (the others are):\n  "
            + "\n  ".join(lines),
            remedy,
            self.failures,
        )
