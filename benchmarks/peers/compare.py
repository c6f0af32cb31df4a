"""Masked PPCA side by side with other packages: the same data, K, machine and run.

    python benchmarks/peers/compare.py make DATA.npz --stars 10000
    python benchmarks/peers/compare.py all DATA.npz --out benchmarks/results/peers-10000
    python benchmarks/peers/compare.py survey DATA.npz --store STORE --stars 5000
    python benchmarks/peers/compare.py all DATA.npz --components 15 --method chemscale-recommended robusta

Every method runs in a process of its own, so that its peak memory is its own (above the memory held when
the data are loaded). Time is that of the fit alone, without imports and loading; processor time beside it is what other
work on the machine disturbs least. Quality: log-likelihood of
the observed pixels under a shared noise (each method's mean and axes, with the best scales and noise for
them), and the error of the pixels hidden from all methods (5 % at random), plain and in units of each
pixel's error. For the stars of a survey with clusters (`survey`), also the doppelganger rate of RSCA on the
coordinates, leave-one-cluster-out, all features.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

#: Components, from --components by way of the environment.
K = int(os.environ.get("CHEMSCALE_PEERS_K", "30"))
HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))  # the peers live in an environment of their own


def make(path: str, stars: int, seed: int) -> None:
    """Spectra of benchmarks/passes.py on the used pixels, with 5 % more hidden."""
    sys.path.insert(0, str(HERE.parents[1]))
    import passes

    used = passes.used_pixels()
    parts = [passes.spectra(s, min(s + 2000, stars), seed) for s in range(0, stars, 2000)]
    # A boolean index leaves columns next to each other in memory; spectra come row by row.
    flux, ivar, flags = (np.ascontiguousarray(np.concatenate([p[i][:, used] for p in parts])) for i in range(3))
    missing = flags != 0
    hidden = (np.random.default_rng(seed + 1).random(flux.shape, dtype="f4") < 0.05) & ~missing
    np.savez(path, flux=flux, ivar=ivar, missing=missing, hidden=hidden)


def survey(path: str, store: str, stars: int, seed: int) -> None:
    """Members and evenly spaced field stars of a survey on its used pixels, with 5 % more hidden."""
    import chemscale
    from chemscale.rsca.selection import default_settings, select_stars

    ds = chemscale.open_survey(store)
    chosen = select_stars(ds, default_settings(ds))
    members, field = np.flatnonzero(chosen.members), np.flatnonzero(chosen.field)
    rows = np.sort(np.concatenate([members, field[np.linspace(0, len(field) - 1, stars - len(members)).astype(int)]]))
    flux, ivar, flags = (ds[n].isel(star=rows).values for n in ("flux", "ivar", "flags"))
    missing = (flags != 0) | ~(ivar > 0) | ~np.isfinite(flux)
    used = np.flatnonzero(missing.mean(axis=0) < 0.5)
    flux, ivar, missing = (np.ascontiguousarray(a[:, used]) for a in (flux, ivar, missing))
    hidden = (np.random.default_rng(seed + 1).random(flux.shape, dtype="f4") < 0.05) & ~missing
    labels = {n: np.asarray(ds[n].values[rows], float) for n in ("extinction", "radial_velocity")}
    cluster = np.asarray(chosen.cluster)[rows].astype(str)
    np.savez(path, flux=flux, ivar=ivar, missing=missing, hidden=hidden, cluster=cluster, **labels)


def rate(data: dict[str, np.ndarray], coords: np.ndarray) -> float:
    """Doppelganger rate of RSCA on the coordinates, leave-one-cluster-out."""
    from chemscale.rsca.doppelganger import Evaluation
    from chemscale.rsca.stars import pair_covariates

    field = data["cluster"] == ""
    covariates = pair_covariates(data.get, field, ~field)
    return Evaluation(coords[field], coords[~field], data["cluster"][~field], covariates).rates("rsca").overall


class Peak:
    """Largest resident memory of this process, sampled every 20 ms."""

    def __enter__(self) -> Peak:
        import psutil

        self.process = psutil.Process()
        self.base = self.peak = self.process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


Result = tuple[Callable[[], np.ndarray], np.ndarray, np.ndarray]  # reconstruction, mean (P,), axes (K, P)


def chemscale_shared(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray, tol: float = 1e-3) -> Result:
    from chemscale.statistics.ppca import MaskedPPCA

    fit = MaskedPPCA(K, tol=tol).fit(flux, gone)
    return lambda: fit.mean_ + fit.transform(flux, gone) @ fit.components_, fit.mean_, fit.components_


def chemscale_errors(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray, tol: float = 1e-3) -> Result:
    from chemscale.statistics.ppca import MaskedPPCA

    fit = MaskedPPCA(K, noise="per-pixel", tol=tol).fit(flux, gone, ivar)
    return lambda: fit.mean_ + fit.transform(flux, gone, ivar) @ fit.components_, fit.mean_, fit.components_


def chemscale_recommended(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    """Per-pixel errors, outliers left out, as `rsca fit` does by default."""
    from chemscale.rsca.recipes import RECIPES
    from chemscale.statistics.ppca import MaskedPPCA

    fit = MaskedPPCA(K, **RECIPES["recommended"].settings()).fit(flux, gone, ivar)
    print(fit.verdict, file=sys.stderr)
    return lambda: fit.mean_ + fit.transform(flux, gone, ivar) @ fit.components_, fit.mean_, fit.components_


def robusta(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    """Student-t factorisation by reweighted least squares, to its own tolerance; without a mean of its own."""
    from robusta_hmf import Robusta

    weight = np.where(gone, 0.0, ivar).astype(float)
    mean = (weight * np.where(gone, 0.0, flux)).sum(0) / np.maximum(weight.sum(0), 1e-300)
    y = np.where(gone, 0.0, flux - mean)
    model = Robusta(rank=K, method="als", robust=True)
    most = int(os.environ.get("CHEMSCALE_PEERS_ITERATIONS", "1000"))
    state, _ = model.fit(y, weight, max_iter=most)
    print(f"{int(state.it)} iterations of at most {most}", file=sys.stderr)
    rebuilt = np.asarray(state.A) @ np.asarray(state.G).T
    return lambda: mean + rebuilt, mean, np.linalg.qr(np.asarray(state.G))[0].T


def pyppca(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    import numpy.matlib  # noqa: F401
    from pyppca import ppca

    np.random.seed(0)  # noqa: NPY002
    axes, _, mean, _, full = ppca(np.where(gone, np.nan, flux).astype(np.float64), K, False)
    return lambda: full, np.ravel(mean), np.linalg.qr(axes)[0].T


def pca_magic(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    from ppca import PPCA

    np.random.seed(0)  # noqa: NPY002
    fit = PPCA()
    fit.fit(np.where(gone, np.nan, flux).astype(np.float64), d=K)
    axes = np.linalg.qr(fit.C * fit.stds[:, None])[0].T  # it standardises every pixel
    return lambda: fit.means + fit.stds * (fit.data @ fit.C @ fit.C.T), fit.means, axes


def _wpca(name: str, flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    import sklearn.utils.validation as validation

    original = validation.check_array

    def translated(*args: object, **kwargs: object) -> np.ndarray:  # wpca 0.1 predates scikit-learn 1.6
        if "force_all_finite" in kwargs:
            kwargs["ensure_all_finite"] = kwargs.pop("force_all_finite")
        return original(*args, **kwargs)

    def eigh(*args: object, eigvals: tuple[int, int] | None = None, **kwargs: object) -> tuple[np.ndarray, np.ndarray]:
        return eigh_now(*args, subset_by_index=eigvals, **kwargs)  # wpca 0.1 predates SciPy 1.14

    import scipy.linalg

    eigh_now = scipy.linalg.eigh
    scipy.linalg.eigh = eigh
    validation.check_array = translated
    import wpca

    weights = np.where(gone, 0.0, np.sqrt(ivar))
    x = flux.astype(np.float64)
    model = wpca.EMPCA(n_components=K, max_iter=10, random_state=0) if name == "EMPCA" else wpca.WPCA(n_components=K)
    model.fit(x, weights=weights)
    return lambda: model.reconstruct(x, weights=weights), model.mean_, model.components_


def wpca_empca(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    return _wpca("EMPCA", flux, gone, ivar)


def wpca_wpca(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    return _wpca("WPCA", flux, gone, ivar)


def filled(flux: np.ndarray, gone: np.ndarray) -> np.ndarray:
    mean = np.where(gone, 0, flux).sum(0) / np.maximum((~gone).sum(0), 1)
    return np.where(gone, mean, flux).astype(flux.dtype)


def sklearn_pca(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    from sklearn.decomposition import PCA

    x = filled(flux, gone)
    fit = PCA(K, svd_solver="randomized", random_state=0).fit(x)
    return lambda: fit.inverse_transform(fit.transform(x)), fit.mean_, fit.components_


def sklearn_incremental(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    from sklearn.decomposition import IncrementalPCA

    x = filled(flux, gone)
    fit = IncrementalPCA(K, batch_size=512).fit(x)
    return lambda: fit.inverse_transform(fit.transform(x)), fit.mean_, fit.components_


def dask_ml_incremental(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    import dask.array as da
    from dask_ml.decomposition import IncrementalPCA

    x = filled(flux, gone)
    fit = IncrementalPCA(K, batch_size=1024).fit(da.from_array(x, chunks=(1024, -1)))
    axes, mean = np.asarray(fit.components_), np.asarray(fit.mean_)
    return lambda: mean + (x - mean) @ axes.T @ axes, mean, axes


def dask_ml_pca(flux: np.ndarray, gone: np.ndarray, ivar: np.ndarray) -> Result:
    import dask.array as da
    from dask_ml.decomposition import PCA

    x = filled(flux, gone)
    lazy = da.from_array(x, chunks=(2048, -1))
    fit = PCA(K, svd_solver="randomized", random_state=0).fit(lazy)
    axes, mean = np.asarray(fit.components_), np.asarray(fit.mean_)
    return lambda: mean + (x - mean) @ axes.T @ axes, mean, axes


METHODS: dict[str, tuple[str, Callable[..., Result]]] = {
    "chemscale-quick": ("chemscale, shared noise, to 0.05 rad", partial(chemscale_shared, tol=0.05)),
    "chemscale-shared": ("chemscale, shared noise, to 0.001 rad", chemscale_shared),
    "chemscale-errors-quick": ("chemscale, per-pixel noise, to 0.05 rad", partial(chemscale_errors, tol=0.05)),
    "chemscale-errors": ("chemscale, per-pixel noise, to 0.001 rad", chemscale_errors),
    "chemscale-recommended": ("chemscale, recommended recipe", chemscale_recommended),
    "robusta": ("robusta-hmf 0.0.2", robusta),
    "pyppca": ("pyppca 0.0.4", pyppca),
    "pca-magic": ("ppca 0.0.4 (pca-magic)", pca_magic),
    "wpca-empca": ("wpca 0.1 EMPCA, 10 iterations", wpca_empca),
    "wpca-wpca": ("wpca 0.1 WPCA", wpca_wpca),
    "sklearn-pca": ("scikit-learn PCA, mean-filled", sklearn_pca),
    "sklearn-incremental": ("scikit-learn IncrementalPCA, mean-filled", sklearn_incremental),
    "dask-ml-incremental": ("dask-ml IncrementalPCA, mean-filled", dask_ml_incremental),
    "dask-ml-pca": ("dask-ml PCA, mean-filled", dask_ml_pca),
}


def loglike(flux: np.ndarray, gone: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> float:
    """Observed-data log-likelihood of a mean and axes, with the best scales and noise for them (three EM steps)."""
    from chemscale.statistics.ppca_kernels import Model, SharedPass, shared_stats

    p = axes.shape[1]
    basis = np.linalg.qr(axes.T.astype(np.float64))[0]
    model = Model(mean.astype(np.float64), basis, np.full(axes.shape[0], 1.0), 1e-4)
    stats: dict = {}
    for _ in range(4):
        stats = {}
        for s in range(0, len(flux), 1000):
            task = SharedPass(model, np.zeros((p, 0)))
            part = shared_stats(flux[s : s + 1000], gone[s : s + 1000], task, np.dtype(np.float32))
            stats = part if not stats else {k: stats[k] + v for k, v in part.items()}
        second = (stats["latent2"] + stats["cov"]) / stats["n"]
        values, vectors = np.linalg.eigh(second)
        noise = float(stats["rss"] / (stats["count"].sum() - K * stats["n"]))
        model = Model(model.mean, model.basis @ vectors[:, ::-1], np.sqrt(values[::-1]), noise)
    return float(stats["loglike"])


def one(method: str, path: str) -> dict:
    """Run one method on the data; called in a process of its own."""
    import importlib

    for module in ("scipy.linalg", "sklearn.decomposition", "dask.array", "dask_ml.decomposition"):
        importlib.import_module(module)
    with np.load(path) as file:
        data = dict(file)
    flux, ivar, missing, hidden = (data[n] for n in ("flux", "ivar", "missing", "hidden"))
    gone = missing | hidden
    if method.startswith("chemscale"):  # leave imports and first-call costs out, as for the others
        METHODS[method][1](flux[:200, :500].copy(), gone[:200, :500].copy(), ivar[:200, :500].copy())
    with Peak() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        reconstruct, mean, axes = METHODS[method][1](flux, gone, ivar)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    start = time.perf_counter()
    rebuilt = reconstruct()
    error = rebuilt[hidden] - flux[hidden]
    chi2 = error.astype(np.float64) ** 2 * ivar[hidden]
    return {
        "method": METHODS[method][0],
        "stars": len(flux),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gib": (peak.peak - peak.base) / 2**30,
        "reconstruct_seconds": time.perf_counter() - start,
        "hidden_rms": float(np.sqrt(np.mean(error.astype(np.float64) ** 2))),
        "hidden_chi": float(np.sqrt(chi2.mean())),
        "loglike": loglike(flux, gone, np.asarray(mean), np.asarray(axes)),
    } | ({"rate": rate(data, (rebuilt - mean) @ np.asarray(axes).T)} if "cluster" in data else {})


def table(rows: list[dict]) -> str:
    """Markdown table."""
    head = (
        "| method | stars | fit, s | processor, s | peak above data, GiB | log-likelihood | hidden rms "
        "| hidden rms / error | rate |"
    )
    lines = [head, "| --- " * 9 + "|"]
    for r in rows:
        if "failed" in r:
            lines.append(f"| {r['method']} | | {r['failed']} | | | | | | |")
            continue
        lines.append(
            f"| {r['method']} | {r['stars']} | {r['seconds']:.2f} | {r['cpu_seconds']:.2f} | {r['peak_gib']:.2f} "
            f"| {r['loglike']:.6e} "
            f"| {r['hidden_rms']:.5f} | {r['hidden_chi']:.4f} | {r.get('rate', float('nan')):.4f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: str) -> None:
    """Time against hidden-pixel error; area of a point = memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    good = [r for r in rows if "failed" not in r]
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for number, r in enumerate(good, 1):
        ours = r["method"].startswith("chemscale")
        x, y = r["seconds"], r["hidden_chi"] - 1
        label = f"{number}  {r['method']}"
        axis.scatter(x, y, 60 + 120 * r["peak_gib"], color="#0072B2" if ours else "#999999", alpha=0.6, label=label)
        axis.annotate(str(number), (x, y), fontsize=8, ha="center", va="center")
    axis.set(xscale="log", yscale="log", xlabel="seconds to fit", ylabel="rms error of hidden pixels / noise - 1")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.3, which="both")
    axis.set_title(f"{good[0]['stars']:,} stars, K = {os.environ['CHEMSCALE_PEERS_K']}; area = peak memory", fontsize=9)
    figure.legend(
        loc="outside right upper", fontsize=7, frameon=False, handletextpad=0.2, handlelength=0, markerscale=0
    )
    figure.savefig(path, dpi=150)


def everything(path: str, out: str, methods: list[str]) -> None:
    """All methods, one process each."""
    rows = []
    for name in methods:
        run = subprocess.run([sys.executable, str(HERE), "one", path, "--method", name], capture_output=True, text=True)
        sys.stderr.write(run.stderr[-400:])
        if run.returncode:
            why = run.stderr.strip().splitlines()[-1] if run.stderr.strip() else f"exit {run.returncode}"
            rows.append({"method": METHODS[name][0], "failed": why})
        else:
            rows.append(json.loads(run.stdout.strip().splitlines()[-1]))
        print(rows[-1], flush=True)
    Path(out + ".json").write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "rows": rows}, indent=1) + "\n")
    Path(out + ".md").write_text(table(rows))
    if any("failed" not in r for r in rows):
        plot(rows, out + ".png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "survey", "one", "all"])
    parser.add_argument("data")
    parser.add_argument("--stars", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--store", help="of `survey`")
    parser.add_argument("--components", type=int, default=K)
    parser.add_argument("--out", default="peers")
    args = parser.parse_args()
    os.environ["CHEMSCALE_PEERS_K"] = str(args.components)
    if args.command == "survey":
        survey(args.data, args.store, args.stars, args.seed)
    elif args.command == "make":
        make(args.data, args.stars, args.seed)
    elif args.command == "one":
        print(json.dumps(one(args.method[0], args.data)))
    else:
        everything(args.data, args.out, args.method)


if __name__ == "__main__":
    main()
