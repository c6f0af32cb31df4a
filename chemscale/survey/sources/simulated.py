"""The simulated survey as a source, so that it goes through the same ingestion as real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.clusters import draw_field
from chemscale.simulation.generator import Simulation, simulate_parts
from chemscale.simulation.population import BLOCK
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan

#: Per-star variables a simulated survey has.
LABELS = (
    *("cluster", "cluster_probability", "ra", "dec", "teff", "logg", "fe_h", "alpha_m", "c_fe", "vmicro", "snr"),
    *("radial_velocity", "velocity_scatter", "extinction", "reddening", "visits", "n_visits", "quality"),
    *("abundance", "abundance_error", "source_file"),
)
_SCHEME = "simulated:"


class SimulatedSource:
    """A survey drawn from a seed; any worker can generate any of its stars.

    Parameters
    ----------
    stars, clusters, seed, grid, population, instrument, emulator, hits
        See :class:`chemscale.simulation.Simulation`.

    Notes
    -----
    Generating is fastest for items that lie together: stars come in blocks of 256.
    """

    name = "simulated"

    def __init__(
        self,
        stars: int,
        clusters: int = 22,
        seed: int = 0,
        *,
        grid: str = "hband",
        population: str = "disc",
        instrument: str = "auto",
        emulator: str | None = None,
        hits: float = 0.0,
    ):
        self.simulation = Simulation(
            int(stars),
            int(clusters),
            int(seed),
            grid,
            population,
            instrument,
            None if emulator is None else str(emulator),
            float(hits),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.simulation.settings()  # templates and bases are made again on the worker

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.simulation = Simulation(**state)

    def plan(self) -> SurveyPlan:
        """All stars. Draws populations only, no spectra (about 20 microseconds a star)."""
        sim = self.simulation
        sim.spectra  # noqa: B018  (an unreadable emulator is reported here, before any worker starts)
        items = []
        member_ids = sim._members.star_id if sim._members is not None else []
        block = -1
        ids: list[str] = []
        for start in range(0, sim.n_stars, 1 << 16):
            rows = np.arange(start, min(start + (1 << 16), sim.n_stars))
            is_member, number = sim.rank(rows)
            for row, member, k in zip(rows.tolist(), is_member.tolist(), number.tolist(), strict=True):
                if member:
                    items.append(Item(member_ids[k], f"{_SCHEME}{row}", _NO_LABELS))
                    continue
                if k // BLOCK != block:
                    block = k // BLOCK
                    ids = draw_field(sim.seed, block, sim.population, sim.grid).star_id
                items.append(Item(ids[k % BLOCK], f"{_SCHEME}{row}", _NO_LABELS))
        return SurveyPlan(
            survey=sim.wavelengths.survey,
            wavelength=sim.wavelengths.wavelength,
            medium=sim.wavelengths.medium,
            items=items,
            elements=APOGEE_ELEMENTS,
            labels=LABELS,
            attrs={"simulation": sim.settings(), "normalisation": sim.wavelengths.normalisation},
        )

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        """Generate the given stars.

        Raises
        ------
        InputError
            The grid is not the simulation's own: simulated spectra are never resampled.
        """
        sim = self.simulation
        if wavelength.shape != sim.wavelengths.wavelength.shape or not np.allclose(
            wavelength, sim.wavelengths.wavelength, rtol=1e-9
        ):
            raise InputError("simulated spectra exist on their own grid only", "use the wavelengths of plan()")
        rejected, rows, wanted = [], [], []
        for item in items:
            row = item.path.removeprefix(_SCHEME)
            if item.path.startswith(_SCHEME) and row.isdigit() and int(row) < sim.n_stars:
                rows.append(int(row))
                wanted.append(item.star_id)
            else:
                rejected.append(Rejection(item.path, "not a row of this simulated survey", item.star_id))
        p = sim.wavelengths.wavelength.size
        if not rows:
            empty = np.empty((0, p), np.float32)
            return StarBlock([], empty, empty.copy(), np.empty((0, p), np.uint8), {}, rejected)
        n = len(rows)
        flux, ivar = np.empty((n, p), np.float32), np.empty((n, p), np.float32)
        flags = np.empty((n, p), np.uint8)
        pieces: list[tuple[np.ndarray, dict[str, Any]]] = []
        for at, made in simulate_parts(sim, np.array(rows)):
            if made.stars.star_id != [wanted[i] for i in at.tolist()]:
                raise InputError("these stars are not of this simulation", "use the plan of the same settings")
            flux[at] = made.observed.flux
            ivar[at], flags[at] = sim.optics.to_store(made.observed)
            pieces.append((at, made.labels))
        back = np.argsort(np.concatenate([at for at, _ in pieces]), kind="stable")
        labels = {k: np.concatenate([piece[k] for _, piece in pieces])[back] for k in pieces[0][1]}
        columns = [APOGEE_ELEMENTS.index(e) for e in elements]
        for name in ("abundance", "abundance_error"):
            labels[name] = labels[name][:, columns]
        labels["source_file"] = np.array([f"{_SCHEME}{r}" for r in rows], dtype=object)
        return StarBlock(wanted, flux, ivar, flags, labels, rejected)

    def describe(self) -> dict[str, Any]:
        """Settings that fix every star."""
        return self.simulation.settings()


_NO_LABELS: dict[str, Any] = {}
