"""Is this machine, this cluster, this store in a state to work? Each check says what to do if not."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from chemscale.errors import ChemscaleError


@dataclass(frozen=True)
class Check:
    """One finding: `status` is 'ok', 'note' (worth knowing) or 'bad' (must be mended)."""

    name: str
    status: str
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def diagnose(*, cluster: str | None = None, store: str | None = None) -> Iterator[Check]:
    """Run the checks, cheapest first; with `cluster` and `store` those too."""
    checks: dict[str, Callable[[], Check]] = {
        "python": _python,
        "packages": _packages,
        "extras": _extras,
        "cores": _cores,
        "memory": _memory,
        "scratch": _scratch,
        "tls": _tls,
        "gpu": _gpu,
        "batch systems": _batch,
        "dashboard": _bokeh,
    }
    if cluster is not None:
        checks["cluster"] = lambda: _cluster(cluster)
    if store is not None:
        checks["store"] = lambda: _store(store)
    for name, check in checks.items():
        try:
            yield check()
        except ChemscaleError as err:
            yield Check(name, "bad", err.message, err.remedy)


def _python() -> Check:
    return Check("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def _packages() -> Check:
    from chemscale.runtime.run import versions

    found = versions()
    missing = [n for n in ("numpy", "dask", "distributed", "xarray", "zarr", "torch", "astropy") if n not in found]
    text = ", ".join(f"{k} {v}" for k, v in found.items() if k != "python")
    return Check("packages", "bad" if missing else "ok", text, "make a new environment" if missing else "")


#: Optional parts: extra of chemscale -> module it brings.
EXTRAS = {
    "s3": "s3fs",
    "hpc": "dask_jobqueue",
    "k8s": "dask_kubernetes",
    "gpu": "dask_cuda",
    "index": "faiss",
    "hdf5": "h5py",
    "spectra": "specutils",
}


def _extras() -> Check:
    from importlib.util import find_spec

    there = [extra for extra, module in EXTRAS.items() if find_spec(module) is not None]
    absent = [extra for extra in EXTRAS if extra not in there]
    text = f"installed: {', '.join(there) or 'none'}" + (f"; not: {', '.join(absent)}" if absent else "")
    return Check("extras", "ok", text)


def _cores() -> Check:
    from dask.system import CPU_COUNT
    from threadpoolctl import threadpool_info

    blas = {f"{p['internal_api']} with {p['num_threads']} thread(s)" for p in threadpool_info()}
    total = os.cpu_count() or 1
    note = "" if total == CPU_COUNT else f" of the machine's {total} (container, affinity or batch limit)"
    return Check("cores", "ok", f"{CPU_COUNT}{note}; {', '.join(sorted(blas)) or 'no BLAS loaded'}")


def _memory() -> Check:
    import psutil
    from distributed.system import MEMORY_LIMIT
    from rich.filesize import decimal

    free = psutil.virtual_memory().available
    low = min(free, MEMORY_LIMIT) < 2e9
    text = f"{decimal(MEMORY_LIMIT)} may be used, {decimal(free)} free"
    return Check("memory", "note" if low else "ok", text, "use --workers 1" if low else "")


def _scratch() -> Check:
    from rich.filesize import decimal

    from chemscale.runtime.observe import human_seconds

    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as f:
        f.write(b"\0" * (32 << 20))
        f.flush()
        os.fsync(f.fileno())
    spent = time.perf_counter() - begun
    text = f"{folder}: {decimal(free)} free, 32 MiB written in {human_seconds(spent)}"
    return Check("scratch", "note" if free < 5e9 else "ok", text, "set TMPDIR to a larger disk" if free < 5e9 else "")


def _tls() -> Check:
    from chemscale.runtime import credentials

    if not credentials.available():
        return Check("tls", "note", "local clusters run without TLS", "pip install cryptography")
    credentials.make_pair()
    return Check("tls", "ok", "credentials can be made")


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", "ok", f"none visible to torch {torch.__version__}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    try:
        import dask_cuda  # noqa: F401
    except Exception as err:  # the driver's own errors
        return Check("gpu", "note", f"{', '.join(names)}; dask-cuda: {err}", "pip install 'chemscale[gpu]'")
    return Check("gpu", "ok", ", ".join(names))


def _batch() -> Check:
    found = [n for n, program in (("slurm", "sbatch"), ("pbs/sge", "qsub"), ("lsf", "bsub")) if shutil.which(program)]
    if shutil.which("kubectl"):
        found.append("kubernetes")
    if not found:
        return Check("batch systems", "ok", "none here")
    try:
        import dask_jobqueue  # noqa: F401
    except ImportError:
        return Check("batch systems", "note", ", ".join(found), "pip install 'chemscale[hpc]'")
    return Check("batch systems", "ok", ", ".join(found))


def _bokeh() -> Check:
    from chemscale.runtime.observe import _has_bokeh

    if _has_bokeh():
        return Check("dashboard", "ok", "bokeh is installed")
    return Check("dashboard", "note", "no dashboard, no performance reports", "pip install bokeh")


def _cluster(spec: str) -> Check:
    """Connect, run a task on every worker, compare versions."""
    from rich.filesize import decimal

    from chemscale.runtime.backends import describe
    from chemscale.runtime.cluster import connect
    from chemscale.runtime.run import versions

    with connect(spec) as client:
        about = describe(client)
        begun = time.perf_counter()
        there = client.run(versions)
        spent = time.perf_counter() - begun
    here = versions()
    other = {k for v in there.values() for k in here if v.get(k) != here[k]}
    text = (
        f"{about['scheduler']}: {about['workers']} worker(s), {about['threads']} thread(s), "
        f"{decimal(about['memory_bytes'])}, {len(about['hosts'])} host(s), answered in {spent:.2f} s"
    )
    if other:
        return Check(
            "cluster", "bad", f"{text}; other versions there: {', '.join(sorted(other))}", "use one environment"
        )
    if not about["encrypted"]:
        return Check("cluster", "note", f"{text}; not encrypted", "see `tls` in [cluster]")
    return Check("cluster", "ok", text)


def _store(path: str) -> Check:
    from rich.filesize import decimal

    from chemscale.survey.store.verify import verify

    report = verify(path, deep=False)
    text = f"{path}: {report.n_stars:,} stars, {report.n_files:,} files, {decimal(report.n_bytes)} checked"
    if report.ok:
        return Check("store", "ok", text)
    some = "; ".join(str(f) for f in report.faults[:3])
    return Check("store", "bad", f"{text}; {len(report.faults)} fault(s): {some}", f"chemscale verify {path} --repair")
