"""A simulated survey, one block of stars at a time.

Stars are numbered: row r of a survey of N field stars and M cluster members is a field star or a
member by a fixed rule that spreads the members over the survey. Field stars come in blocks of 256
(one plate), each from its own random streams; all members come from the streams of their clusters.
So ``simulate_block`` of any rows gives the same spectra however a survey is cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.clusters import cluster_sizes, concatenate, draw_field, draw_members, take
from chemscale.simulation.emulator import Emulator
from chemscale.simulation.instrument import Instrument, Observed
from chemscale.simulation.labels import halo_labels, observed_labels
from chemscale.simulation.lines import Grid, LineSpectra, grid
from chemscale.simulation.population import BLOCK, CATALOGUES, MEMBER_BLOCK, POPULATIONS, RANGES, SimulatedStars, stream

#: [X/Fe] labels of the emulators, by name.
_RELATIVE = {
    "c_fe": "C",
    "n_fe": "N",
    "o_fe": "O",
    "mg_fe": "Mg",
    "al_fe": "Al",
    "si_fe": "Si",
    "ca_fe": "Ca",
    "ni_fe": "Ni",
}


@dataclass(frozen=True)
class Simulation:
    """Settings of a simulated survey; equal settings give equal surveys.

    Parameters
    ----------
    stars : int
        Field stars.
    clusters : int
        Open clusters, whose members come on top of the field stars (185 for 22 clusters).
    seed : int
        Non-negative.
    grid : {"hband", "lowres"}
        ``hband``: apStar grid, 8575 pixels, vacuum. ``lowres``: 4000-10400 Angstrom, 4150 pixels, air.
    population : {"disc", "uniform", "metal-poor", "carbon-rich", "halo"}
        See :mod:`chemscale.simulation.population`.
    instrument : {"full", "noise", "none", "auto"}
        ``auto`` is ``full`` for H-band spectra and ``noise`` for low resolution.
    emulator : str or None
        Emulator file that gives the spectra instead of the built-in lines.
    hits : float
        Fraction of pixels with an unflagged cosmic-ray hit or bad sky line (:mod:`chemscale.simulation.artefacts`).

    Raises
    ------
    InputError
        A setting out of range, or an emulator of another grid.
    """

    stars: int
    clusters: int = 22
    seed: int = 0
    grid: str = "hband"
    population: str = "disc"
    instrument: str = "auto"
    emulator: str | None = None
    hits: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return self.settings()  # what a worker needs; templates and bases are made there again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __post_init__(self) -> None:
        if not 0 <= self.stars < 99_000_000:
            raise InputError(f"{self.stars} stars asked for", "choose 0 to 99 million")
        if not 0 <= self.clusters <= 5_000:
            raise InputError(f"{self.clusters} clusters asked for", "choose 0 to 5000")
        if self.stars + self.clusters == 0:
            raise InputError("a survey without field stars and without clusters", "give --stars or --clusters")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative", "choose a seed of 0 or more")
        if not 0 <= self.hits < 0.5:
            raise InputError(f"hits in a fraction {self.hits} of the pixels", "choose 0 to 0.5; 1e-4 is typical")
        if self.grid not in RANGES:
            raise InputError(f"no grid {self.grid!r}", f"choose one of {', '.join(RANGES)}")
        if self.population not in POPULATIONS:
            raise InputError(f"no population {self.population!r}", f"choose one of {', '.join(POPULATIONS)}")
        if self.population in CATALOGUES and self.grid != "lowres":
            raise InputError(f"population {self.population!r} needs the low-resolution grid", "add --grid lowres")
        if self.clusters and self.grid != "hband" and self.population != "disc":
            raise InputError("clusters are giants of the disc", "use --clusters 0 with this population")

    # ------------------------------------------------------------------ machinery, made once

    @property
    def level(self) -> str:
        """The instrument's level with ``auto`` resolved."""
        if self.instrument == "auto":
            return "full" if self.grid == "hband" else "noise"
        return self.instrument

    @cached_property
    def wavelengths(self) -> Grid:
        """Wavelength grid."""
        return grid(self.grid)

    @cached_property
    def optics(self) -> Instrument:
        """The instrument."""
        return Instrument(self.wavelengths, self.level, self.hits)

    @cached_property
    def spectra(self) -> LineSpectra | Emulator:
        """What turns labels into spectra."""
        if self.emulator is None:
            return LineSpectra(self.wavelengths)
        emulator = Emulator(self.emulator)
        wave = self.wavelengths.wavelength
        if emulator.grid_name != self.grid or not (
            emulator.wavelength.shape == wave.shape and np.allclose(emulator.wavelength, wave, rtol=1e-7)
        ):
            raise InputError(
                f"{self.emulator} is an emulator of the {emulator.grid_name} grid, the survey's grid is {self.grid}",
                f"add --grid {emulator.grid_name}",
            )
        return emulator

    @cached_property
    def _members(self) -> SimulatedStars | None:
        return draw_members(self.seed, self.clusters, self.grid)

    @property
    def n_members(self) -> int:
        """Cluster members in all."""
        return sum(cluster_sizes(self.clusters))

    @property
    def n_stars(self) -> int:
        """Field stars and members."""
        return self.stars + self.n_members

    def settings(self) -> dict[str, Any]:
        """JSON-able settings; `hits` only where there are some, as in surveys made before there were."""
        made = asdict(self)
        return made if self.hits else {k: v for k, v in made.items() if k != "hits"}

    # ----------------------------------------------------------------------------- rows

    def rank(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(is_member, number) of survey rows; members are spread evenly among the field stars."""
        row = np.asarray(row, np.int64)
        m, n = self.n_members, self.n_stars
        before = (row * m + n // 2) // n if m else np.zeros_like(row)
        after = ((row + 1) * m + n // 2) // n if m else before
        member = after > before
        return member, np.where(member, before, row - before)

    def _draw_block(self, block: int) -> SimulatedStars:
        return self._inside(draw_field(self.seed, block, self.population, self.grid))

    def _inside(self, stars: SimulatedStars) -> SimulatedStars:
        """With an emulator: labels moved into its range, so that the truth is what made the spectrum.

        The uniform Teff and log g of the halo are rescaled to the range, everything else is clipped to it.
        """
        if isinstance(self.spectra, Emulator):
            if self.population == "halo":
                low, high = self.spectra.low, self.spectra.high
                stars.teff = low[0] + (stars.teff - 3000.0) / 4000.0 * (high[0] - low[0])
                stars.logg = low[1] + (stars.logg - 2.5) / 3.5 * (high[1] - low[1])
            wanted = self._emulator_labels(stars)
            labels = self.spectra.clip(wanted)
            for name, column, was in zip(self.spectra.label_names, labels.T, wanted.T, strict=True):
                if name in _RELATIVE:
                    index = APOGEE_ELEMENTS.index(_RELATIVE[name])
                    stars.abundance[:, index] += column - was
                    if name == "c_fe":
                        stars.abundance[:, APOGEE_ELEMENTS.index("CI")] += column - was
        return stars

    def _emulator_labels(self, stars: SimulatedStars) -> np.ndarray:
        columns = []
        for name in self.spectra.label_names:  # type: ignore[union-attr]
            if name in _RELATIVE:
                columns.append(stars.fe_relative(_RELATIVE[name]))
            elif name == "alpha_fe":
                columns.append(stars.alpha_fe)
            else:
                columns.append(getattr(stars, name))
        return np.stack(columns, axis=1)

    def clean_flux(self, stars: SimulatedStars) -> np.ndarray:
        """Noise-free spectra before the instrument, shape (n, P), float32."""
        if isinstance(self.spectra, Emulator):
            return self.spectra.flux(self.spectra.clip(self._emulator_labels(stars)))
        columns = {e: stars.abundance[:, i] for i, e in enumerate(APOGEE_ELEMENTS) if e not in ("CI", "TiII")}
        return self.spectra.flux({"teff": stars.teff, "logg": stars.logg}, columns)

    def truth(self, rows: np.ndarray) -> SimulatedStars:
        """True labels of survey rows, in the order asked for."""
        member, number = self.rank(rows)
        out_of_order: list[SimulatedStars] = []
        position: list[np.ndarray] = []
        if member.any():
            assert self._members is not None
            out_of_order.append(self._inside(take(self._members, number[member])))
            position.append(np.flatnonzero(member))
        field = np.flatnonzero(~member)
        for block in np.unique(number[field] // BLOCK):
            at = field[number[field] // BLOCK == block]
            out_of_order.append(take(self._draw_block(int(block)), number[at] - block * BLOCK))
            position.append(at)
        stars = concatenate(out_of_order)
        return take(stars, np.argsort(np.concatenate(position), kind="stable"))


@dataclass
class Block:
    """Simulated stars: truth, observed spectra, labels as measured."""

    stars: SimulatedStars
    observed: Observed
    labels: dict[str, Any]


def simulate_parts(simulation: Simulation, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Block]]:
    """Blocks that together hold the given survey rows, each with the positions its stars have in `rows`.

    Whole plates are generated and cut, so ask for rows that lie together. Only one plate is in
    memory at a time: about 30 MB for the H band.
    """
    rows = np.asarray(rows, np.int64)
    if rows.size == 0 or rows.min() < 0 or rows.max() >= simulation.n_stars:
        raise InputError(f"rows outside the survey's 0..{simulation.n_stars - 1}", "ask for existing rows")
    member, number = simulation.rank(rows)
    if member.any():
        whole = simulation._members
        assert whole is not None
        for piece in np.unique(number[member] // MEMBER_BLOCK):
            at = np.flatnonzero(member & (number // MEMBER_BLOCK == piece))
            first = int(piece) * MEMBER_BLOCK
            index = np.arange(first, min(first + MEMBER_BLOCK, len(whole)))
            yield at, _observe(simulation, take(whole, index), (3, int(piece)), number[at] - first)
    field = np.flatnonzero(~member)
    for block in np.unique(number[field] // BLOCK):
        at = field[number[field] // BLOCK == block]
        stars = draw_field(simulation.seed, int(block), simulation.population, simulation.grid)
        yield at, _observe(simulation, stars, (2, int(block)), number[at] - block * BLOCK)


def simulate_block(simulation: Simulation, rows: np.ndarray) -> Block:
    """Stars of the given survey rows: truth, spectra and labels, in the order asked for.

    Raises
    ------
    InputError
        A row outside the survey.
    """
    return _assemble(list(simulate_parts(simulation, rows)), np.asarray(rows).size)


def _observe(simulation: Simulation, stars: SimulatedStars, key: tuple[int, int], keep: np.ndarray) -> Block:
    """Observe one whole block and keep the asked rows of it."""
    stars = simulation._inside(stars)
    rng = stream(simulation.seed, *key)
    labels = (halo_labels if simulation.population == "halo" else observed_labels)(stars, rng)
    observed = simulation.optics.observe(simulation.clean_flux(stars), stars, rng)
    if keep.size == len(stars) and np.array_equal(keep, np.arange(len(stars))):
        return Block(stars, observed, labels)
    cut = Observed(observed.flux[keep], observed.error[keep], observed.bad[keep])
    return Block(take(stars, keep), cut, {k: v[keep] for k, v in labels.items()})


def _assemble(parts: list[tuple[np.ndarray, Block]], n: int) -> Block:
    if len(parts) == 1 and np.array_equal(parts[0][0], np.arange(n)):
        return parts[0][1]
    order = np.concatenate([at for at, _ in parts])
    place = np.argsort(order, kind="stable")
    p = parts[0][1].observed.flux.shape[1]
    observed = Observed(np.empty((n, p), np.float32), np.empty((n, p), np.float32), np.empty((n, p), bool))
    for at, block in parts:
        observed.flux[at], observed.error[at], observed.bad[at] = (
            block.observed.flux,
            block.observed.error,
            block.observed.bad,
        )
    labels = {k: np.concatenate([b.labels[k] for _, b in parts])[place] for k in parts[0][1].labels}
    return Block(take(concatenate([b.stars for _, b in parts]), place), observed, labels)


__all__ = ["Block", "Simulation", "simulate_block", "simulate_parts"]
