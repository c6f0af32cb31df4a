"""Two hundred calls of every public function in one process leave descriptors, threads and memory where they were."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from commands import FAST, FAST_MODEL, TOY_REGIONS
from helpers import make_survey
from vae_toy import toy_survey

import chemscale
from chemscale.rsca.pipeline import fit_run
from chemscale.schema import Flag
from chemscale.survey.sources.table import TableSource

CALLS = 200
#: Calls after which pools, caches and the allocator's arenas are as large as they get.
WARM = 60
#: MiB that the later 140 calls may add: less than 30 KiB a call.
MORE = 4.0


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, Callable[[], Any]]:
    """Public name -> one call on small inputs."""
    top = tmp_path_factory.mktemp("long")
    memory = make_survey(120, 5, 5, n_pixels=40, seed=3)
    store, run = top / "s.zarr", top / "run"
    chemscale.write_survey(memory, store)
    fit_run(str(store), run, components=4)
    toy, vae = top / "v.zarr", top / "vae"
    chemscale.write_survey(toy_survey(320), toy)
    settings = {**FAST, "epochs": 1, "decoder_finetune_epochs": 1, "label_pretrain_epochs": 1, "late_label_weight": 0.0}
    trained = {"model": FAST_MODEL, "settings": settings, "regions": TOY_REGIONS, "scale": False, "device": "cpu"}
    chemscale.train_vae(str(toy), vae, **trained)
    chemscale.infer_vae(str(toy), vae)
    names = ("flux", "ivar", "teff", "logg")
    table = top / "table.npz"
    np.savez(table, wavelength=memory["wavelength"].values, **{n: memory[n].values for n in names})
    rng = np.random.default_rng(0)
    field, members = rng.standard_normal((300, 4)), rng.standard_normal((20, 4))
    clusters = np.repeat([f"c{i}" for i in range(5)], 4)
    x, missing = rng.standard_normal((200, 20)), rng.random((200, 20)) < 0.1
    return {
        "RSCA": lambda: chemscale.RSCA().fit(field, members, clusters).transform(field),
        "Flag": lambda: Flag(3),
        "MaskedPPCA": lambda: chemscale.MaskedPPCA(3, max_iter=3).fit(x, missing).transform(x, missing),
        "Run": lambda: chemscale.Run(run).table(),
        "doppelganger_rates": lambda: chemscale.doppelganger_rates(field, members, clusters),
        "export_spectra": lambda: chemscale.export_spectra(
            chemscale.open_survey(store), top / "some.fits", stars=["S000045"], overwrite=True
        ),
        "from_spectra": lambda: chemscale.from_spectra(_spectra(), medium="vacuum"),
        "infer_vae": lambda: chemscale.infer_vae(str(toy), vae, overwrite=True),
        "ingest": lambda: chemscale.ingest(TableSource(str(table)), top / "t.zarr", overwrite=True, progress=False),
        "open_embedding": lambda: chemscale.open_embedding(run / "embedding.zarr")["coords"].values,
        "open_latents": lambda: chemscale.open_latents(vae)["latents"].values,
        "open_survey": lambda: chemscale.open_survey(store)["flux"].values,
        "siblings": lambda: chemscale.siblings("S000045", run, n=5).load(),
        "train_vae": lambda: chemscale.train_vae(str(toy), vae, overwrite=True, **trained),
        "validate": lambda: chemscale.validate(memory),
        "write_survey": lambda: chemscale.write_survey(memory, top / "w.zarr", overwrite=True),
    }


def _spectra() -> list[Any]:
    pytest.importorskip("specutils")
    import astropy.units as u
    from astropy.nddata import StdDevUncertainty
    from specutils import Spectrum

    wave, error = np.linspace(4000, 4100, 60) * u.AA, StdDevUncertainty(np.full(60, 0.01))
    return [
        Spectrum(
            np.ones(60) * u.dimensionless_unscaled, spectral_axis=wave, uncertainty=error, meta={"star_id": f"s{i}"}
        )
        for i in range(3)
    ]


def test_every_public_name_can_be_called_again_and_again(calls):
    assert set(calls) == set(chemscale.__all__) - {"__version__"}
    for call in calls.values():
        call()
        call()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(set(chemscale.__all__) - {"__version__"}))
def test_two_hundred_calls_leave_nothing_behind(calls, name):
    me, seen = psutil.Process(), []
    for number in range(CALLS):
        calls[name]()
        if number in (WARM - 1, CALLS - 1):
            gc.collect()
            seen.append((me.num_fds(), me.num_threads(), me.memory_info().rss / 2**20))
    (fds, threads, mib), after = seen
    assert after[0] <= fds + 1
    assert after[1] <= threads
    assert after[2] - mib <= MORE
