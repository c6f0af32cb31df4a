"""GALAH spectra (DR3, DR4): four files a star, one a HERMES camera, on one rest-frame grid in air.

After the releases' pages on spectra (no real file was at hand). Files are called ``<sobject_id><camera>.fits``. HDU0 is
the reduced spectrum, not normalised; the relative error and the normalised spectrum are other HDUs:

* DR3: HDU1 relative error, HDU4 normalised spectrum;
* DR4: ``relative_error`` and ``normalized`` (by EXTNAME; HDU2 and HDU1).

Each HDU has a linear grid (CRVAL1, CDELT1, CRPIX1, Angstrom in air, barycentric), which `Arm.wavelength` follows. The
velocity comes from the catalogue (`rv_galah` of DR3, `rv_comp_1` of DR4), else from the header (RV, RVCOM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.catalogues.missing import measured_one
from chemscale.catalogues.units import SPEED_OF_LIGHT
from chemscale.errors import InputError
from chemscale.formats.fits import HDU, read_bytes, scan
from chemscale.formats.fits_header import FitsError
from chemscale.formats.paths import printable
from chemscale.survey.resample import Rebinner
from chemscale.survey.sources.arms import Arm, ArmSource, Spectrum, clean_arm, log_grid
from chemscale.survey.sources.base import Item, Rejection, SurveyPlan
from chemscale.survey.sources.file_names import GALAH, other_survey
from chemscale.survey.sources.files import find_files, id_problem

#: Rest-frame ends of the four cameras, Angstrom in air: inside each by the largest shift of a star.
CAMERAS = ((4720.0, 4895.0), (5655.0, 5865.0), (6485.0, 6730.0), (7595.0, 7880.0))
_LOG_STEP = 4e-6
_ERROR, _NORMALISED = ("relative_error", "input_sigma"), ("normalized", "normalised", "normalised_spectrum")
#: O2 and H2O in the red and infrared cameras, observed frame, Angstrom in air.
_TELLURIC = ((6470.0, 6580.0), (7590.0, 7700.0))


class GalahSource(ArmSource):
    """GALAH spectra from one or more folders.

    Parameters
    ----------
    spectra : str or sequence of str
        Folders with ``<sobject_id><camera>.fits`` at any depth.
    labels : str or sequence of str, optional
        The release's catalogue, keyed by `sobject_id`: its abundances, labels and velocities.
    members : str, optional
        Membership table, keyed by `sobject_id`.
    frame : {"rest", "observed"}
        ``observed`` leaves spectra where they are; by default a star without a velocity is refused.
    continuum : {"survey", "running-quantile"}
        ``survey`` takes the normalised spectra of the files.
    **joins
        Further options of :class:`~chemscale.survey.sources.folders.JoiningSource`.

    Notes
    -----
    A star without some of its cameras keeps those it has: the others are gaps. A star without a velocity is refused.
    """

    name = "galah"
    title = "GALAH (DR3, DR4)"
    survey = "GALAH"
    resolution = 28000
    medium = "air"
    velocity_of = "the velocity of the catalogue, else of the header"
    continua = ("survey", "running-quantile")
    uses = ("#0", "HDU1", "HDU4", *_ERROR, *_NORMALISED)
    default_member_key = "sobject_id"
    telluric = _TELLURIC
    interstellar = ()

    def __init__(
        self,
        spectra: str | Sequence[str],
        labels: str | Sequence[str] = (),
        members: str | None = None,
        *,
        bin_width: float = 2.0,
        window: float = 40.0,
        quantile: float = 0.9,
        **options: Any,
    ):
        options |= {"bin_width": bin_width, "window": window, "quantile": quantile}
        super().__init__(spectra, labels=labels, members=members, **options)

    def grids(self) -> list[np.ndarray]:
        return [log_grid(low, high, _LOG_STEP) for low, high in CAMERAS]

    def plan(self) -> SurveyPlan:
        """List the stars by their files and join labels and members; reads no spectrum."""
        rejected: list[Rejection] = []
        files: dict[str, dict[int, tuple[str, str]]] = {}
        for root in self.spectra:
            for path, relative in find_files(root, GALAH.match, broken=rejected):
                match = GALAH.match(relative.rsplit("/", 1)[-1])
                if match is None:  # a file that was named itself
                    reason = "file name does not follow <sobject_id><camera>.fits"
                    rejected.append(Rejection(printable(path), reason, stage="plan"))
                    continue
                star, camera = match["id"], int(match["camera"])
                problem = id_problem(star)
                if camera in files.get(star, {}):
                    problem = f"duplicate: camera {camera} of this star was found as {files[star][camera][1]}"
                if problem:
                    rejected.append(Rejection(printable(path), problem, star_id=star, stage="plan"))
                    continue
                files.setdefault(star, {})[camera] = (path, printable(relative))
        if not files:
            where = ", ".join(map(printable, self.spectra))
            raise InputError(
                f"no GALAH spectra under {where}" + "".join(f"; {r.path}: {r.reason}" for r in rejected[:3]),
                "expected <sobject_id><camera>.fits, such as 1704180037012051.fits"
                + other_survey(self.spectra, self.name),
            )
        items = []
        for star, cameras in files.items():
            paths = [cameras[c][0] for c in sorted(cameras)]
            items.append(Item(star, "#".join(paths), {"source_file": cameras[min(cameras)][1]}))
        return self._planned(
            items,
            ("ra", "dec", "radial_velocity", "source_file"),
            rejected,
            self._keys(items, {"sobject_id": lambda: [item.star_id for item in items]}),
            arms=[list(c) for c in CAMERAS],
            assumed=["wavelengths are in air and barycentric, as the releases' pages say (the files do not)"],
            incomplete=sum(len(c) < 4 for c in files.values()),
        )

    def spectrum(self, item: Item) -> Spectrum:
        arms: list[Arm] = []
        problems: list[str] = []
        velocity = float("nan")
        labels: dict[str, Any] = {}
        for path in item.path.split("#"):
            try:
                units = scan(read_bytes(path))
                arms.append(clean_arm(_arm(units, self.continuum == "survey")))
            except FitsError as problem:
                problems.append(f"{path.rsplit('/', 1)[-1]}: {problem}")
                continue
            header = units[0].header
            for key in ("RVCOM", "RV", "RV_GALAH"):
                value = measured_one("radial_velocity", header.get(key))
                velocity = value if velocity != velocity else velocity
            for name, keys in (("ra", ("MEANRA", "RA")), ("dec", ("MEANDEC", "DEC"))):
                known = [measured_one(name, header.get(k)) for k in keys]
                labels.setdefault(name, next((v for v in known if v == v), np.nan))
        if not arms:
            raise FitsError("; ".join(problems))
        return Spectrum(arms, velocity / SPEED_OF_LIGHT, labels)


def _arm(units: list[HDU], survey: bool) -> Arm:
    """One camera: flux with its absolute error, and the normalised flux on the same grid."""
    flux_unit = units[0]
    error_unit = _find(units, _ERROR, 2 if _find(units, _NORMALISED[:1], None) is not None else 1)
    normal = _find(units, _NORMALISED, 4)
    if error_unit is None or not flux_unit.shape:
        raise FitsError("no flux or no relative error: not a GALAH spectrum")
    flux, relative = np.ravel(flux_unit.image()).astype(np.float64), np.ravel(error_unit.image()).astype(np.float64)
    wavelength = _grid(flux_unit, flux_unit)
    relative = _on(relative, _grid(error_unit, flux_unit), wavelength)
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = np.abs(flux) * relative
        ivar = np.where((relative > 0) & (sigma > 0), 1.0 / np.square(sigma), 0.0)
    normalised = None
    if normal is not None and normal is not error_unit:
        normalised = _on(np.ravel(normal.image()).astype(np.float64), _grid(normal, flux_unit), wavelength)
    elif survey:
        raise FitsError("no normalised spectrum in the file (use --continuum running-quantile)")
    return Arm(wavelength, flux, ivar, ~np.isfinite(flux), normalised)


def _find(units: list[HDU], names: Sequence[str], index: int | None) -> HDU | None:
    """An HDU by one of its names, else by its number where no HDU has a name."""
    for unit in units:
        if unit.header.text("EXTNAME").lower() in names and unit.shape:
            return unit
    if index is not None and index < len(units) and units[index].kind == "IMAGE" and units[index].shape:
        return units[index]
    return None


def _grid(unit: HDU, primary: HDU) -> np.ndarray:
    header = unit.header if unit.header.number("CRVAL1") == unit.header.number("CRVAL1") else primary.header
    start, step = header.number("CRVAL1"), header.number("CDELT1", header.number("CD1_1"))
    reference = header.number("CRPIX1", 1.0)
    if "LOG" in header.text("CTYPE1").upper() or header.number("DC-FLAG", 0.0) == 1.0:
        raise FitsError("CTYPE1 or DC-FLAG says that wavelengths are logarithmic: GALAH's are linear")
    if not (4500 < start < 8500 and 0.01 < step < 1):
        raise FitsError(f"no GALAH wavelength solution: CRVAL1 {start}, CDELT1 {step}")
    return start + step * (np.arange(unit.shape[-1]) + 1.0 - reference)


def _on(values: np.ndarray, grid: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`values` on the grid of the flux; NaN where they do not reach."""
    if len(values) != len(grid):
        raise FitsError(f"{len(values)} values on a grid of {len(grid)} pixels")
    if len(grid) == len(wanted) and np.allclose(grid, wanted, rtol=1e-9, atol=0):
        return values
    good = np.isfinite(values)
    out, weight, _ = Rebinner(grid, wanted)(np.where(good, values, 0.0), good.astype(float))
    return np.where(weight > 0, out, np.nan)
