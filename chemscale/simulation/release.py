"""A simulated survey as a release: the tree of FITS files APOGEE publishes.

``<telescope>/<field>/aspcapStar-r12-<id>.fits`` for every star, ``allStar-r12-sim.fits`` and
``occam_member-sim.fits`` with the columns, sentinels (-9999, -9999.99) and habits of DR16: stars
without fit have STAR_BAD set, the member table also lists unlikely candidates and repeats some rows.
The truth goes to ``truth.npz``, apart from what a survey would publish.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from chemscale.errors import InputError, StoreError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation import fits_bytes as fits
from chemscale.simulation.generator import Block, Simulation, simulate_parts
from chemscale.simulation.population import BLOCK, SimulatedStars, stream
from chemscale.simulation.truth import COLUMNS

APRED = "r12"
SENTINEL = -9999.99
ALLSTAR = f"allStar-{APRED}-sim.fits"
MEMBERS = "occam_member-sim.fits"
_N = len(APOGEE_ELEMENTS)


def _table(columns: str) -> fits.BinaryTable:
    """A table from ``NAME:format`` words; ``*`` stands for the number of species."""
    return fits.BinaryTable(dict(word.replace("*", str(_N)).split(":") for word in columns.split()))


_STAR_TABLE = _table(
    "FILE:S48 APOGEE_ID:S18 TELESCOPE:S8 LOCATION_ID:i4 FIELD:S16 RA:f8 DEC:f8 AK_TARG:f4 SFD_EBV:f4 STARFLAG:i4 "
    "SNR:f4 VHELIO:f4 VSCATTER:f4 NVISITS:i4 PARAM:9f4 FPARAM:9f4 ASPCAPFLAG:i4 FELEM:*f4 X_H:*f4 X_H_ERR:*f4 "
    "X_M:*f4 X_M_ERR:*f4"
)
_ALLSTAR_TABLE = _table(
    "APSTAR_ID:S57 ASPCAP_ID:S59 FILE:S39 APOGEE_ID:S18 TELESCOPE:S8 LOCATION_ID:i4 FIELD:S16 RA:f8 DEC:f8 "
    "NVISITS:i4 SNR:f4 STARFLAG:i4 VHELIO_AVG:f4 VSCATTER:f4 TEFF:f4 LOGG:f4 VMICRO:f4 M_H:f4 ALPHA_M:f4 PARAM:9f4 "
    "ASPCAPFLAG:i4 X_H:*f4 X_H_ERR:*f4 X_M:*f4 X_M_ERR:*f4 AK_TARG:f4 SFD_EBV:f4 VISITS:S200 FE_H:f4 FE_H_ERR:f4"
)
_MEMBER_TABLE = _table(
    "CLUSTER:S13 APOGEE_ID:S18 LOCATION_ID:i8 VHELIO_AVG:f8 VSCATTER:f8 FE_H:f8 FE_H_ERR:f8 RV_PROB:f8 FEH_PROB:f8 "
    "PM_PROB:f8 CG_PROB:f8"
)


def write_release(
    folder: str | os.PathLike[str],
    simulation: Simulation,
    *,
    overwrite: bool = False,
    processes: int | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Write a simulated survey as FITS files.

    Parameters
    ----------
    folder : path
        New folder; refused when it exists, unless `overwrite`.
    simulation : Simulation
        An H-band survey.
    processes : int, optional
        Worker processes; 0 = work in this process. By default two from 2,000 stars on.
    progress : bool, optional
        Show a bar; by default where stderr is a terminal.

    Returns
    -------
    dict
        ``n_files``, ``n_members``, and the paths ``allstar``, ``members``, ``truth``.

    Raises
    ------
    InputError
        Not an H-band survey.
    StoreError
        The folder exists.

    Notes
    -----
    Files appear under ``<folder>.part``, which gets its name when all are written.
    """
    if simulation.grid != "hband":
        raise InputError("an APOGEE-like release needs H-band spectra", "leave --grid out, or use --out STORE")
    target = Path(folder)
    if target.exists():
        if not overwrite:
            raise StoreError(f"{target} exists", "choose another folder, or --overwrite")
        if not (target / ALLSTAR).exists():
            raise StoreError(f"{target} is not a release written here", "remove it yourself")
    work = target.with_name(target.name + ".part")
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    n = simulation.n_stars
    tasks = [(simulation, str(work), a, min(a + 2 * BLOCK, n)) for a in range(0, n, 2 * BLOCK)]
    if processes is None:
        processes = min(2, os.cpu_count() or 1) if n >= 2000 else 0
    parts = _run(_write_part, tasks, processes, n, progress)
    allstar = np.concatenate([p[0] for p in parts])
    allstar = allstar[np.argsort(allstar["APOGEE_ID"], kind="stable")]
    _write_table(work / ALLSTAR, _ALLSTAR_TABLE, allstar)
    members = _member_rows(simulation, allstar, np.concatenate([p[1] for p in parts]))
    _write_table(work / MEMBERS, _MEMBER_TABLE, members)
    truth = {k: np.concatenate([p[2][k] for p in parts]) for k in parts[0][2]}
    everything: dict[str, Any] = {"element": np.array(APOGEE_ELEMENTS), **truth}
    np.savez_compressed(work / "truth.npz", **everything)
    if target.exists():
        shutil.rmtree(target)
    work.rename(target)
    return {
        "n_files": n,
        "n_members": simulation.n_members,
        "n_clusters": simulation.clusters,
        "folder": str(target),
        "allstar": str(target / ALLSTAR),
        "members": str(target / MEMBERS),
        "truth": str(target / "truth.npz"),
    }


def _run(work: Callable[[Any], Any], tasks: list[Any], processes: int, n: int, progress: bool | None) -> list[Any]:
    from chemscale.runtime.observe import progress_bar

    results = []
    with progress_bar(n, "writing spectra", unit="stars", show=progress) as bar:
        if processes <= 1:
            for task in tasks:
                results.append(work(task))
                bar.advance(task[3] - task[2])
            return results
        from multiprocessing import get_context

        from threadpoolctl import threadpool_limits

        with (
            threadpool_limits(1),
            ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool,
        ):
            for task, result in zip(tasks, pool.map(work, tasks), strict=True):
                results.append(result)
                bar.advance(task[3] - task[2])
    return results


def _one_thread() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


_CACHE: dict[str, Simulation] = {}


def _write_part(task: tuple[Simulation, str, int, int]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Write the spectra of some rows; returns their allStar rows, (id, cluster, probability) and truth."""
    simulation, folder, start, stop = task
    key = repr(simulation.settings())
    if key not in _CACHE:
        _CACHE.clear()
        _CACHE[key] = simulation
    simulation = _CACHE[key]
    rows, members, truths = [], [], []
    for at, block in simulate_parts(simulation, np.arange(start, stop)):
        clean = simulation.clean_flux(block.stars)
        rows.append((at, _write_block(Path(folder), block, clean)))
        members.append((at, _membership(block)))
        truths.append((at, _truth(block.stars)))
    order = np.argsort(np.concatenate([a for a, _ in rows]), kind="stable")

    def join(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return np.concatenate([p for _, p in parts])[order]

    truth = {k: join([(a, t[k]) for a, t in truths]) for k in truths[0][1]}
    return join(rows), join(members), truth


def _image_header() -> bytes:
    return fits.image_header(
        8575,
        [
            fits.card("CRVAL1", 4.179, "log10 of the first wavelength"),
            fits.card("CDELT1", 6e-6),
            fits.card("CRPIX1", 1),
            fits.card("CTYPE1", "LOG-LINEAR"),
            fits.card("DC-FLAG", 1),
        ],
    )


def _telescopes(stars: SimulatedStars) -> list[str]:
    return ["lco25m" if d < -35 else "apo25m" for d in stars.dec.tolist()]


def _write_block(folder: Path, block: Block, clean: np.ndarray) -> np.ndarray:
    """One file a star; returns the allStar rows."""
    stars, labels = block.stars, block.labels
    n = len(stars)
    telescopes = _telescopes(stars)
    files = [f"aspcapStar-{APRED}-{i}.fits" for i in stars.star_id]
    rows = _allstar_rows(block, telescopes)
    table = _star_rows(rows, files)
    image, bytes_per = _image_header(), 8575 * 4
    table_header = _STAR_TABLE.header(1)
    flux, error, model = (a.astype(">f4") for a in (block.observed.flux, block.observed.error, clean))
    gap = flux[0] == 0
    error[:, gap] = 0.0  # as in real files: nothing at all between the chips
    model[:, gap] = 0.0
    for place in {(t, f) for t, f in zip(telescopes, stars.field, strict=True)}:
        (folder / place[0] / place[1]).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        head = fits.primary(
            [
                fits.card("OBJ", stars.star_id[i], "object id"),
                fits.card("RA", float(stars.ra[i])),
                fits.card("DEC", float(stars.dec[i])),
                fits.card("SNR", float(labels["snr"][i])),
                fits.card("VHELIO", float(labels["radial_velocity"][i])),
                fits.card("NVISITS", int(labels["n_visits"][i])),
                fits.card("AKTARG", float(labels["extinction"][i])),
            ]
        )
        pieces = [head]
        for data in (flux, error, model):
            raw = data[i].tobytes()
            pieces += [image, raw, b"\0" * (-bytes_per % fits.BLOCK)]
        pieces += [table_header, fits.padded(table[i : i + 1].tobytes())]
        with open(folder / telescopes[i] / stars.field[i] / files[i], "wb", buffering=0) as file:
            file.write(b"".join(pieces))
    return rows


def _sentinel(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, SENTINEL)


def _allstar_rows(block: Block, telescopes: list[str]) -> np.ndarray:
    stars, labels = block.stars, block.labels
    rows = _ALLSTAR_TABLE.rows(len(stars))
    ids = np.array(stars.star_id, "S18")
    rows["APOGEE_ID"], rows["TELESCOPE"], rows["FIELD"] = ids, np.array(telescopes, "S8"), np.array(stars.field, "S16")
    triples = list(zip(telescopes, stars.field, stars.star_id, strict=True))
    rows["APSTAR_ID"] = np.array([f"apogee.{t}.s.stars.{f}.{i}" for t, f, i in triples], "S57")
    rows["ASPCAP_ID"] = np.array([f"apogee.{t}.s.{APRED}-sim.{f}.{i}" for t, f, i in triples], "S59")
    rows["FILE"] = np.array([f"apStar-{APRED}-{i}.fits" for i in stars.star_id], "S39")
    rows["LOCATION_ID"] = stars.plate
    rows["VISITS"] = np.array(stars.visits, "S200")
    bad = labels["quality"] != 0
    plain = "RA:ra DEC:dec NVISITS:n_visits SNR:snr VHELIO_AVG:radial_velocity VSCATTER:velocity_scatter"
    for column, name in (
        w.split(":") for w in f"{plain} AK_TARG:extinction SFD_EBV:reddening ASPCAPFLAG:quality".split()
    ):
        rows[column] = labels[name]
    for column, name in (("TEFF", "teff"), ("LOGG", "logg"), ("VMICRO", "vmicro"), ("ALPHA_M", "alpha_m")):
        rows[column] = np.where(bad, SENTINEL, _sentinel(labels[name]))
    rows["FE_H"] = rows["M_H"] = _sentinel(labels["fe_h"])
    iron = APOGEE_ELEMENTS.index("Fe")
    rows["FE_H_ERR"] = _sentinel(labels["abundance_error"][:, iron])
    rows["X_H"], rows["X_H_ERR"] = _sentinel(labels["abundance"]), _sentinel(labels["abundance_error"])
    rows["X_M"] = _sentinel(labels["abundance"] - labels["fe_h"][:, None])
    rows["X_M_ERR"] = _sentinel(labels["abundance_error"])
    rows["PARAM"] = SENTINEL
    for k, column in enumerate(("TEFF", "LOGG")):
        rows["PARAM"][:, k] = rows[column]
    rows["PARAM"][:, 2] = np.where(bad, SENTINEL, np.log10(np.maximum(labels["vmicro"], 0.1)))
    rows["PARAM"][:, 3], rows["PARAM"][:, 6] = rows["M_H"], rows["ALPHA_M"]
    return rows


def _star_rows(rows: np.ndarray, files: list[str]) -> np.ndarray:
    table = _STAR_TABLE.rows(len(rows))
    shared = set(table.dtype.names or ()) & set(rows.dtype.names or ()) - {"FILE"}
    for column in shared:
        table[column] = rows[column]
    table["FILE"] = np.array(files, "S48")
    table["VHELIO"], table["FPARAM"], table["FELEM"] = rows["VHELIO_AVG"], rows["PARAM"], rows["X_H"]
    return table


def _membership(block: Block) -> np.ndarray:
    out = np.zeros(len(block.stars), [("id", "S18"), ("cluster", "S16"), ("probability", "f8")])
    out["id"] = np.array(block.stars.star_id, "S18")
    out["cluster"] = block.stars.cluster.astype("S16")
    out["probability"] = block.stars.probability
    return out


def _truth(stars: SimulatedStars) -> dict[str, np.ndarray]:
    out = {n: getattr(stars, n).astype("f4") for n in COLUMNS}
    out["star_id"] = np.array(stars.star_id, "U18")
    out["cluster"] = stars.cluster.astype("U16")
    out["abundance"] = stars.abundance.astype("f4")
    out["fibre"] = stars.fibre.astype("i4")
    return out


def _member_rows(simulation: Simulation, allstar: np.ndarray, membership: np.ndarray) -> np.ndarray:
    """The member table: members, unlikely candidates from the field, a few repeated rows."""
    rng = stream(simulation.seed, 4)
    true = membership[membership["cluster"] != b""]
    field = membership[membership["cluster"] == b""]
    n_extra = min(len(field), 2 * len(true))
    extra = field[rng.choice(len(field), n_extra, replace=False)] if n_extra else field[:0]
    names = np.unique(true["cluster"])
    extra_cluster = names[rng.integers(0, len(names), n_extra)] if len(names) else extra["cluster"]
    # half have a low probability, half none at all
    extra_probability = np.where(rng.random(n_extra) < 0.5, SENTINEL, 0.7 * rng.random(n_extra))
    again = rng.choice(len(true), len(true) // 20, replace=False) if len(true) else np.empty(0, int)
    ids = np.concatenate([true["id"], extra["id"], true["id"][again]])
    rows = _MEMBER_TABLE.rows(len(ids))
    rows["APOGEE_ID"] = ids
    rows["CLUSTER"] = np.concatenate([true["cluster"], extra_cluster, true["cluster"][again]])
    rows["CG_PROB"] = np.concatenate([true["probability"], extra_probability, true["probability"][again]])
    place = {k: i for i, k in enumerate(allstar["APOGEE_ID"].tolist())}
    where = [place[k] for k in ids.tolist()]
    for column in ("LOCATION_ID", "VHELIO_AVG", "VSCATTER", "FE_H", "FE_H_ERR"):
        rows[column] = allstar[column][where]
    for column in ("RV_PROB", "FEH_PROB", "PM_PROB"):
        rows[column] = np.where(rows["CG_PROB"] > 0.8, rng.uniform(0.5, 1.0, len(ids)), rng.uniform(0.0, 0.3, len(ids)))
    return rows[np.argsort(rows["CLUSTER"], kind="stable")]


def _write_table(path: Path, table: fits.BinaryTable, rows: np.ndarray) -> None:
    with open(path, "wb") as file:
        file.write(fits.primary() + table.header(len(rows)))
        # joining blocks turns big-endian columns native: FITS wants them big-endian
        file.write(fits.padded(rows.astype(table.dtype).tobytes()))
