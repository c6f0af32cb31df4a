"""One stage on a cluster, slowed down and in trouble: what the fault tests run, and what they compare with."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
from distributed import WorkerPlugin

#: Stars in a block: twenty blocks a pass.
BLOCK = 128
STAGES = ("fit", "embed", "infer")


class Running:
    """A stage under way in a thread of this process."""

    def __init__(self, stage: str, folder: Path, out: Path, client, **trouble):
        out.mkdir(exist_ok=True)
        self.stage, self.out = stage, out
        (out / "reading").unlink(missing_ok=True)
        self.error: BaseException | None = None
        client.register_plugin(Trouble(str(out), stage, **trouble))
        self.thread = threading.Thread(target=self._run, args=(stage, folder, client), daemon=True)
        self.thread.start()

    def _run(self, stage: str, folder: Path, client) -> None:
        import chemscale

        try:
            ds = chemscale.open_survey(folder / "survey.zarr", chunk_stars=BLOCK)
            if stage == "fit":
                fit(ds).to_dataset().to_zarr(self.out / "ppca.zarr", consolidated=False, mode="w")
            elif stage == "embed":
                embed(ds, folder, self.out)
            else:
                infer(ds, folder, self.out, client)
        except BaseException as err:
            self.error = err

    def until_reading(self, seconds: float = 240) -> None:
        """Wait until a worker has read spectra for this stage."""
        deadline = time.monotonic() + seconds
        while not (self.out / "reading").exists():
            assert self.thread.is_alive() and time.monotonic() < deadline, self.error
            time.sleep(0.05)
        time.sleep(0.5)

    def finished(self) -> dict[int, int]:
        """See :class:`Product`."""
        return Product(self.stage, self.out).finished()

    def wait(self, seconds: float = 400) -> BaseException | None:
        """The error it ended with, or None."""
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"still running after {seconds} s"
        return self.error


class Product:
    """What a stage has written so far."""

    def __init__(self, stage: str, out: Path):
        self.stage, self.out = stage, out

    def finished(self) -> dict[int, int]:
        """Parts of the product that are done, and when each was written (ns): marked, or all once it has its name."""
        if self.stage == "fit":
            return {}
        name, array = ("latents.zarr", "mean") if self.stage == "infer" else ("embedding.zarr", "coords")
        whole, partial = self.out / name, self.out / f"{name}.partial"
        if whole.exists():
            folder = whole / array / "c"
            parts = [int(chunk.name) for chunk in folder.iterdir()]
        else:
            folder = partial / "product" / array / "c"
            parts = [int(mark.stem) for mark in (partial / "done").glob("[0-9]*.json")]
        return {part: (folder / f"{part}/0").stat().st_mtime_ns for part in parts}


class Trouble(WorkerPlugin):
    """Slows the reading of spectra down and notes each part begun; ends a worker that comes upon a star, in two ways.

    A part is a block that is read; of inference, whose workers read the store's own, larger blocks, it is a shard.
    """

    name = "trouble"

    def __init__(self, out: str, stage: str = "", delay: float = 0.0, poison: int = -1, hungry: int = -1):
        self.out, self.stage, self.delay, self.poison, self.hungry = out, stage, delay, poison, hungry

    def setup(self, worker) -> None:
        from chemscale.survey.store.rows import StoreGroup

        plain = getattr(StoreGroup, "plain_read", StoreGroup.read)
        StoreGroup.plain_read = plain
        trouble = self

        def read(group, name, start, stop, *rest, **options):
            if name == "flux":
                Path(trouble.out, "reading").touch()
                time.sleep(trouble.delay)
                if trouble.stage != "infer":
                    trouble.begun(start, stop)
                trouble.eat(start, stop)
            return plain(group, name, start, stop, *rest, **options)

        StoreGroup.read = read
        if self.stage == "infer" or "chemscale.vae.inference" in sys.modules:
            from chemscale.vae.shard_runner import ShardRunner

            call = getattr(ShardRunner, "plain_call", ShardRunner.__call__)
            ShardRunner.plain_call = call

            def work(runner, shard):
                if trouble.stage == "infer":
                    trouble.begun(shard.start, shard.stop)
                return call(runner, shard)

            ShardRunner.__call__ = work

    def begun(self, start: int, stop: int) -> None:
        with open(Path(self.out, "begun"), "a", encoding="utf-8") as log:
            log.write(f"{start}\n")
        if start <= self.poison < stop:
            os.kill(os.getpid(), signal.SIGKILL)

    def eat(self, start: int, stop: int) -> None:
        """Once, at the star: memory until the nanny ends this worker at its limit."""
        once = Path(self.out, "was-hungry")
        if start <= self.hungry < stop and not once.exists():
            once.touch()
            hoard = []
            while True:
                hoard.append(np.ones(4_000_000))
                time.sleep(0.02)


def prepare(folder: Path) -> None:
    """A store of many small blocks, and what an undisturbed run in one process makes of it."""
    import dask
    import xarray as xr
    from helpers import make_survey

    import chemscale
    from chemscale.bench.stages import untrained_vae
    from chemscale.survey.store.layout import Layout

    chemscale.write_survey(
        make_survey(2_500, 12, 6, 200, seed=1), folder / "survey.zarr", layout=Layout(64, 128, 65536)
    )
    ds = chemscale.open_survey(folder / "survey.zarr", chunk_stars=BLOCK)
    with dask.config.set(scheduler="synchronous"):
        model = fit(ds)
        model.to_dataset().to_zarr(folder / "ppca.zarr", consolidated=False)
        embed(ds, folder, folder)
    untrained_vae(ds, folder / "vae", model)
    infer(ds, folder, folder, None)
    xr.open_zarr(folder / "latents.zarr", consolidated=False).load()


def fit(ds):
    from chemscale.embedding.fit import fit_survey

    return fit_survey(ds, n_components=6, keep_bytes=0, tol=1e-12, loglike_tol=1e-15, max_iter=4)


def embed(ds, folder: Path, out: Path):
    import xarray as xr

    from chemscale.embedding.product import embed_survey
    from chemscale.statistics.ppca import MaskedPPCA

    model = MaskedPPCA.from_dataset(xr.open_zarr(folder / "ppca.zarr", consolidated=False).load())
    return embed_survey(ds, model, out / "embedding.zarr", resume=True)


def infer(ds, folder: Path, out: Path, client):
    from chemscale.vae.inference import infer_survey

    store = str(folder / "survey.zarr")
    infer_survey(ds, folder / "vae", out / "latents.zarr", store=store, client=client, shard_stars=BLOCK)


def check(stage: str, folder: Path, out: Path) -> None:
    """The product equals that of the undisturbed run: fit and embedding to the bit, latents to 1e-5."""
    import xarray as xr

    name = {"fit": "ppca.zarr", "embed": "embedding.zarr", "infer": "latents.zarr"}[stage]
    got, expected = (xr.open_zarr(f / name, consolidated=False).load() for f in (out, folder))
    assert stage == "fit" or got.attrs["complete"]
    assert set(got.variables) == set(expected.variables)
    for variable in expected.variables:
        a, b = got[variable].values, expected[variable].values
        if stage != "infer" or b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b, err_msg=variable)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=variable)
