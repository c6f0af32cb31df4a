"""DESI coadds: ``coadd-*.fits`` (and spectra files of the same layout), three arms joined on one rest-frame grid.

HDUs ``B_WAVELENGTH``, ``B_FLUX`` (1e-17 erg/s/cm2/A), ``B_IVAR``, ``B_MASK`` (unsigned, often compressed) and the same
of R and Z; ``FIBERMAP`` has a row a spectrum with TARGETID and labels; ``SCORES`` holds S/N ratios. Velocities and
stellar parameters come from a table beside the coadd, ``rvtab_*`` (rvspecfit: VRAD, TEFF, LOGG, FEH, ALPHAFE),
``redrock-*`` or ``zbest-*`` (Z), or from label tables by `targetid`. Wavelengths are vacuum, barycentric.
Checked on a real coadd of five targets (EDR); the tables beside it after the public data model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.catalogues.missing import gaia_ids, identifiers, measured, measured_one, numbers, words
from chemscale.catalogues.opening import open_catalogue
from chemscale.catalogues.units import SPEED_OF_LIGHT, converter
from chemscale.errors import InputError
from chemscale.formats.fits_file import FitsFile
from chemscale.formats.fits_header import FitsError
from chemscale.formats.paths import is_remote, printable
from chemscale.survey.sources.arms import (
    HARMLESS_ZWARNING,
    TELLURIC_WINDOWS,
    Arm,
    ArmSource,
    Spectrum,
    checked_wavelength,
    clean_arm,
    linear_grid,
)
from chemscale.survey.sources.base import Item, Rejection, SurveyPlan
from chemscale.survey.sources.file_names import DESI_COADD, DESI_VELOCITIES, other_survey
from chemscale.survey.sources.files import find_files
from chemscale.survey.sources.folders import as_list
from chemscale.survey.sources.labels import RowLabels

_ARMS = ("B", "R", "Z")
#: contract name -> columns of an rvspecfit, redrock or zbest table
_VELOCITIES = {
    "radial_velocity": ("vrad",),
    "teff": ("teff",),
    "teff_error": ("teff_err",),
    "logg": ("logg",),
    "logg_error": ("logg_err",),
    "fe_h": ("feh",),
    "alpha_m": ("alphafe",),
}
_FIBERMAP = {"ra": "TARGET_RA", "dec": "TARGET_DEC", "reddening": "EBV", "n_visits": "COADD_NUMEXP"}
LABELS = ("ra", "dec", "snr", "radial_velocity", "reddening", "n_visits", "quality", "spectral_class", "source_file")


@dataclass
class Velocities:
    """What tables beside the coadds know: columns by contract name, the row of each target, and other classes."""

    columns: dict[str, np.ndarray]
    rows: dict[str, int]
    ignored: list[str]


class DesiSource(ArmSource):
    """DESI stars out of coadds.

    Parameters
    ----------
    spectra : str or sequence of str
        Coadds, or folders with ``coadd-*.fits`` at any depth.
    redshifts : str or sequence of str, optional
        rvtab, redrock or zbest tables; by default those beside the coadds are used. Of several that know a target,
        rvspecfit's velocity counts.
    tellurics : bool
        Flag windows of strong telluric absorption: the pipeline divides it out by standard stars of the same exposure,
        so that only its residuals remain.
    wavelength_range : (float, float)
        Rest-frame ends of the grid, vacuum Angstrom, in steps of 0.8.
    frame : {"rest", "observed"}
        ``observed`` leaves spectra where they are; by default a star without a velocity is refused.
    continuum : {"running-quantile"}
        Flux is in physical units: it is always divided by a running quantile.
    **joins
        Labels and members, as for :class:`~chemscale.survey.sources.folders.JoiningSource`, keyed by `targetid`,
        `ref_id` (the Gaia source), or coordinates.

    Notes
    -----
    A target without a velocity in any table, or with a redshift beyond 0.01, is refused with that reason; a velocity
    that RVS_WARN or ZWARN warns of (but for MANY_OUTLIERS and NEGATIVE_EMISSION) counts for none. Refused are also sky
    fibres, and targets that redrock calls GALAXY or QSO unless rvspecfit gives a velocity. A pixel whose mask is not 0
    is bad. Where arms overlap, their inverse-variance weighted mean counts.
    """

    name = "desi"
    title = "DESI coadds (EDR, DR1)"
    survey = "DESI"
    resolution = 3000
    velocity_of = "the velocity of a label table, of rvspecfit, else of redrock"
    limits = (3500.0, 10000.0)
    uses = (
        r"[BRZ]_(WAVELENGTH|FLUX|IVAR|MASK)",
        r"FIBERMAP\.(TARGETID|OBJTYPE|REF_ID|TARGET_RA|TARGET_DEC|EBV|COADD_NUMEXP|COADD_FIBERSTATUS)",
        r"SCORES\.MEDIAN_COADD_SNR_[BRZ]",
    )
    default_member_key = "targetid"
    #: rows of a coadd stand together: read as many at once as are worked on
    read_stars = 256

    def __init__(
        self,
        spectra: str | Sequence[str],
        labels: str | Sequence[str] = (),
        members: str | None = None,
        *,
        redshifts: str | Sequence[str] = (),
        tellurics: bool = False,
        wavelength_range: tuple[float, float] = (3600.0, 9800.0),
        **options: Any,
    ):
        super().__init__(spectra, labels=labels, members=members, **options)
        self.telluric = TELLURIC_WINDOWS if tellurics else ()
        self.wavelength_range, self.redshifts = self._range(wavelength_range), as_list(redshifts)
        self._files: dict[str, FitsFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def grids(self) -> list[np.ndarray]:
        return [linear_grid(*self.wavelength_range, 0.8)]

    # ------------------------------------------------------------------ plan

    def plan(self) -> SurveyPlan:
        """List the targets by FIBERMAP and join what tables know of them; reads no spectrum."""
        rejected: list[Rejection] = []
        coadds: list[tuple[str, str]] = []
        beside: list[str] = list(self.redshifts)
        for root in self.spectra:
            single = not is_remote(root) and os.path.isfile(root)
            for path, relative in find_files(root, _accept, broken=rejected):
                if single or DESI_COADD.match(os.path.basename(path)):
                    coadds.append((path, relative))
                    if single and not self.redshifts:
                        beside += _tables_beside(path)
                elif not self.redshifts:
                    beside.append(path)
        if not coadds:
            raise InputError(
                f"no DESI coadds under {', '.join(map(printable, self.spectra))}",
                "expected coadd-*.fits, or name the file itself" + other_survey(self.spectra, self.name),
            )
        known = read_velocities(beside)
        items: list[Item] = []
        reference: list[str] = []
        seen: dict[str, str] = {}
        for path, relative in coadds:
            try:
                listed = self._targets(path, relative, known, seen, rejected)
            except InputError as problem:
                rejected.append(Rejection(printable(path), problem.message, stage="plan"))
                continue
            items += [item for item, _ in listed]
            reference += [ref for _, ref in listed]
        names = {"targetid": lambda: [item.star_id for item in items], "ref_id": lambda: reference}
        return self._planned(
            items,
            (*LABELS, "gaia_source_id", *known.columns),
            rejected,
            self._keys(items, names | {"source_id": lambda: reference}, redshift="z"),
            velocities=[printable(b) for b in beside],
            quality="COADD_FIBERSTATUS",
            ignored=known.ignored,
        )

    def _targets(
        self, path: str, relative: str, known: Velocities, seen: dict[str, str], rejected: list[Rejection]
    ) -> list[tuple[Item, str]]:
        """(item, Gaia source) of the targets of one coadd."""
        file = self._open(path)
        shapes, fibres = file.shapes(), file.columns_of("FIBERMAP")
        absent = [f"{a}_{w}" for a in _ARMS for w in ("WAVELENGTH", "FLUX", "IVAR") if f"{a}_{w}" not in shapes]
        if "TARGETID" not in fibres or len(absent) == 3 * len(_ARMS):
            lacks = "TARGETID in FIBERMAP" if "TARGETID" not in fibres else absent[0]
            raise InputError(f"not a DESI coadd: no {lacks}", "check it")
        ids = identifiers(file.rows(fibres["TARGETID"])) or []
        n = len(ids)
        for name in (f"{a}_{w}" for a in _ARMS for w in ("FLUX", "IVAR", "MASK")):
            if name in shapes and shapes[name][0] != n:
                raise InputError(f"{name} has {shapes[name][0]} spectra, FIBERMAP {n} targets", "check the file")
        kinds = words(file.rows(fibres["OBJTYPE"])) if "OBJTYPE" in fibres else ["TGT"] * n
        reference = identifiers(file.rows(fibres["REF_ID"])) if "REF_ID" in fibres else None
        reference = ["" if r in ("0", "-1") else r for r in reference or ()]  # not in Gaia
        columns = {k: measured(k, file.rows(fibres[c])) for k, c in _FIBERMAP.items() if c in fibres}
        columns["snr"] = _ratios(file, ids)
        if reference and (sources := gaia_ids(np.array(reference))) is not None:
            columns["gaia_source_id"] = sources
        if "COADD_FIBERSTATUS" in fibres:
            columns["quality"] = np.ma.filled(file.rows(fibres["COADD_FIBERSTATUS"]), -1).astype(np.int64)
        at = np.array([known.rows.get(star, -1) for star in ids])
        for name, values in known.columns.items():
            taken = np.array(values[at])
            taken[at < 0] = "" if taken.dtype.kind == "U" else np.nan
            columns[name] = taken
        out = []
        for row, star in enumerate(ids):
            where = f"{path}#{row}"
            problem = ""
            if kinds[row] == "SKY":
                problem = "a sky fibre, no target"
            elif star in seen:
                problem = f"duplicate: this target was already found in {printable(seen[star])}"
            if problem:
                rejected.append(Rejection(printable(where), problem, star_id=star, stage="plan"))
                continue
            seen[star] = relative
            extra = {"source_file": printable(relative)}
            out.append((Item(star, where, RowLabels(columns, row, extra)), reference[row] if reference else ""))
        return out

    def _open(self, path: str) -> FitsFile:
        if path not in self._files:
            if len(self._files) > 8:
                self._files.clear()
            self._files[path] = FitsFile(path)
        return self._files[path]

    # ------------------------------------------------------------------ read

    def reader(self, items: Sequence[Item]) -> Callable[[Item], Spectrum]:
        """Read the rows of each file together; what cannot be read is told star by star."""
        wanted: dict[str, list[int]] = {}
        for item in items:
            path, _, row = item.path.rpartition("#")
            wanted.setdefault(path, []).append(int(row))
        arms: dict[str, list[Arm]] = {}
        problems: dict[str, str] = {}
        for path, rows in wanted.items():
            try:
                arms |= _load(self._open(path), path, rows)
            except (InputError, FitsError, OSError) as problem:
                problems[path] = getattr(problem, "message", str(problem))
        return lambda item: self._spectrum(
            item, arms.get(item.path, []), problems.get(item.path.rpartition("#")[0], "")
        )

    def _spectrum(self, item: Item, arms: list[Arm], problem: str) -> Spectrum:
        if problem or not arms:
            raise FitsError(problem or "the coadd has no arm for this target")
        kind = str(item.labels.get("spectral_class", ""))
        velocity = measured_one("radial_velocity", item.labels.get("radial_velocity"))
        if kind in ("GALAXY", "QSO") and velocity != velocity:
            raise FitsError(f"redrock calls it a {kind}, and no table has a stellar velocity")
        good, problems = [], []
        for arm in arms:
            try:
                good.append(clean_arm(arm))
            except FitsError as error:
                problems.append(str(error))
        if not good:
            raise FitsError(f"none of its arms: {problems[0]}")
        return Spectrum(good)


def _accept(name: str) -> bool:
    return bool(DESI_COADD.match(name) or DESI_VELOCITIES.match(name))


def _ratios(file: FitsFile, ids: list[str]) -> np.ndarray:
    """Median signal-to-noise ratio of the R arm of these targets, where SCORES has it."""
    scores = file.columns_of("SCORES")
    out = np.full(len(ids), np.nan)
    for name in ("MEDIAN_COADD_SNR_R", "MEDIAN_COADD_SNR_B", "MEDIAN_COADD_SNR_Z"):
        if name in scores:
            ratios = measured("snr", file.rows(scores[name]))
            listed = identifiers(file.rows(scores["TARGETID"])) if "TARGETID" in scores else ids
            row_of = {star: row for row, star in enumerate(listed or ())}
            known = [(i, row_of[star]) for i, star in enumerate(ids) if star in row_of]
            if len(ratios) == len(listed or ()) and known:
                at, rows = np.array(known).T
                out[at] = ratios[rows]
                break
    return out


def _load(file: FitsFile, path: str, rows: list[int]) -> dict[str, list[Arm]]:
    """``path#row`` -> the arms of that target."""
    shapes = file.shapes()
    chosen = np.array(sorted(set(rows)))
    out: dict[str, list[Arm]] = {}
    for arm in _ARMS:
        flux, wave, ivar, mask = (f"{arm}_{w}" for w in ("FLUX", "WAVELENGTH", "IVAR", "MASK"))
        if not all(n in shapes for n in (flux, wave, ivar)):
            continue
        to_angstrom = converter("wavelength", file.units(wave), printable(path))
        grid = numbers(file.rows(wave)) if to_angstrom is None else to_angstrom(numbers(file.rows(wave)))
        try:
            checked_wavelength(grid, shapes[flux][1])
        except FitsError as problem:
            raise FitsError(f"{wave}: {problem}") from None
        values, weights = file.rows(flux, chosen), file.rows(ivar, chosen)
        bad = np.ma.filled(file.rows(mask, chosen), 1) != 0 if mask in shapes else np.zeros(values.shape, bool)
        for k, row in enumerate(chosen.tolist()):
            out.setdefault(f"{path}#{row}", []).append(Arm(grid, values[k], weights[k], bad[k]))
    return out


def _tables_beside(path: str) -> list[str]:
    """Tables of velocities in the folder of a coadd."""
    folder = os.path.dirname(os.path.abspath(path))
    return sorted(os.path.join(folder, n) for n in os.listdir(folder) if DESI_VELOCITIES.match(n))


def read_velocities(paths: Sequence[str]) -> Velocities:
    """Velocities, stellar parameters and classes by target id; of a target known twice the first table counts."""
    columns: dict[str, list[np.ndarray]] = {}
    rows: dict[str, int] = {}
    ignored: list[str] = []
    total = 0
    # rvspecfit first: redrock's classes and redshifts fill what it does not know
    for path in sorted(paths, key=lambda p: (not os.path.basename(p).startswith("rvtab"), p)):
        table = open_catalogue(path)
        key = table.need("TARGETID", "give a table of DESI targets")
        found = {name: c for name, options in _VELOCITIES.items() for o in options if (c := table.find(o))}
        z, kind = table.find("Z"), table.find("SPECTYPE")
        warning = table.find("RVS_WARN" if "radial_velocity" in found else "ZWARN")
        used = [key, *found.values(), *(c for c in (z, kind, warning) if c)]
        values = table.read(dict.fromkeys(used))
        ids = identifiers(values[key]) or []
        block = {
            name: measured(name, values[c], converter(name, table.units.get(c, ""), printable(path)))
            for name, c in found.items()
        }
        classes = np.array(words(values[kind]) if kind else [""] * len(ids), str)
        if "radial_velocity" not in block and z:
            redshift = numbers(values[z])
            star = (np.abs(redshift) < 0.01) & ~np.isin(classes, ("GALAXY", "QSO"))
            block["radial_velocity"] = np.where(star, redshift * SPEED_OF_LIGHT, np.nan)
        if warning and "radial_velocity" in block:
            bits = np.nan_to_num(numbers(values[warning])).astype(np.int64)
            doubted = (bits & ~(0 if "radial_velocity" in found else HARMLESS_ZWARNING)) != 0
            doubted &= np.isfinite(block["radial_velocity"])
            block["radial_velocity"] = np.where(doubted, np.nan, block["radial_velocity"])
            if doubted.any():
                why = f"{np.count_nonzero(doubted)} velocities that {warning} warns of"
                ignored.append(f"{why}, of {printable(os.path.basename(path))}")
        block["spectral_class"] = classes
        for name in (*_VELOCITIES, "spectral_class"):
            fill = np.full(len(ids), "") if name == "spectral_class" else np.full(len(ids), np.nan)
            columns.setdefault(name, []).append(block.get(name, fill))
        for i, star in enumerate(ids):
            rows.setdefault(star, total + i)
        total += len(ids)
        ignored += [f"{c} of {printable(os.path.basename(path))}" for c in table.columns if c not in used]
    return Velocities({n: np.concatenate(v) for n, v in columns.items()}, rows, ignored)
