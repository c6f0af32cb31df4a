"""Simulated surveys: a Galactic population, spectra from physics or an emulator, and an instrument.

The pieces, in the order in which a star passes through them:

``population``
    Labels of field stars and open clusters: parameters along giant branches, abundances of
    26 species, velocity, extinction, position, visits.
``atmosphere``, ``molecules``, ``lines``
    The built-in spectra: Saha-Boltzmann populations in one line-forming layer, continuous
    H- opacity, molecular equilibrium, a curve of growth, and line lists kept in ``data/``.
``emulator``
    Spectra from an external emulator file instead (its format is documented there).
``instrument``
    Line spread by fibre, telluric residuals, interstellar bands, continuum, chips, noise.
``generator``
    :class:`Simulation` puts the pieces together, one block of stars at a time.
``release``
    Writes a survey as a tree of FITS files the way APOGEE does.

Every block of 256 stars (one plate) has its own random stream derived from the seed and the
block's number, so a star does not depend on how a survey is split into shards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chemscale.simulation.generator import Block, Simulation, simulate_block
    from chemscale.simulation.release import write_release
    from chemscale.simulation.truth import clean_spectra, read_truth, write_truth

__all__ = ["Block", "Simulation", "clean_spectra", "read_truth", "simulate_block", "write_release", "write_truth"]

_HOME = {
    "Block": "generator",
    "Simulation": "generator",
    "simulate_block": "generator",
    "write_release": "release",
    "clean_spectra": "truth",
    "read_truth": "truth",
    "write_truth": "truth",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(name)
