"""Options that several verbs share, and the Dask client that two of them ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from distributed import Client

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
RunDir = Annotated[str, typer.Option("--run", metavar="RUN", help="Run directory.")]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", metavar="SPEC", help="Dask cluster: local, an address, or a TOML with [cluster]."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Worker processes; by default none: work in this process.")
]
#: Where files are read or made: many stars are worth processes of their own.
ReadWorkers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Worker processes; by default one a core from 2,000 stars on; 0 = none."),
]


@contextmanager
def client_for(workers: int | None, cluster: str | None, *, threads: int = 2) -> Iterator[Client | None]:
    """A Dask client for --cluster or --workers (of so many threads); None to work in this process."""
    if cluster is None and not workers:
        yield None
        return
    from chemscale.runtime.cluster import connect

    overrides: dict[str, Any] = {} if cluster else {"threads": threads}
    with connect(cluster or "local", workers=workers, **overrides) as client:
        yield client
