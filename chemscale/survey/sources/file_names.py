"""What the files of each survey are called: names are recognised here, and nowhere else.

A source of another package says how the names of its files begin by its attribute `file_names`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable

from chemscale.formats.paths import is_remote, printable
from chemscale.survey.sources.base import available_sources

_FITS = r"\.fits(?:\.gz)?$"
#: ``aspcapStar-r12-2M00452143+1634446.fits``, with pipeline, telescope and date in some releases
APOGEE = re.compile(
    r"^(?P<product>aspcapStar|ap1mStar|apStar|asStar)-(?P<apred>[A-Za-z0-9.]+)"
    r"(?:-(?P<aspcap>l\d[A-Za-z0-9.]*))?(?:-(?P<telescope>apo25m|lco25m|apo1m))?"
    rf"-(?P<id>.+?)(?:-(?P<mjd>5\d{{4}}|6\d{{4}}))?{_FITS}",
    re.DOTALL,
)
#: product -> how the names of its files begin
APOGEE_PRODUCTS = {"aspcapStar": ("aspcapStar-",), "apStar": ("apStar-", "asStar-", "ap1mStar-")}
#: APOGEE's other files, and what can be done with them
APOGEE_OTHERS = {
    r"a[ps]Visit-": "a single visit on the wavelengths of its own detectors, not brought to rest: give the star's"
    " apStar file (--product apStar) or aspcapStar file",
    r"aspcapStar-": "of the product aspcapStar: leave out --product",
    r"(?:apStar|asStar|ap1mStar)-": "of the product apStar: --product apStar",
    r"(?:apred|apPlate|asPlate|ap1D|ap2D)-": "a whole plate or detector, no star",
}
#: ``mwmStar-0.6.0-114514.fits``
SDSS_V = re.compile(rf"^mwm(?:Star|Visit)-[A-Za-z0-9.]+-(?P<id>[^-]+){_FITS}")
#: ``spec-0266-51602-0031.fits``
SDSS_SPEC = re.compile(rf"^spec(?:Lite|Full)?-(?P<plate>\d+p?)-(?P<mjd>\d{{5}})-(?P<fibre>\d+){_FITS}")
#: coadds, and tables of velocities that stand beside them
DESI_COADD = re.compile(rf"^(?:coadd|spectra)-.*{_FITS}")
DESI_VELOCITIES = re.compile(rf"^(?:rvtab[-_].*|redrock-.*|zbest-.*){_FITS}")
#: ``131116000501004`` and the number of the camera
GALAH = re.compile(rf"^(?P<id>\d{{15}})(?P<camera>[1-4]){_FITS}")
#: one star a file, as the archive's DataLink gives it
GAIA_XP_SINGLE = re.compile(r"^XP_SAMPLED-.*?(\d{5,19})\.(?:csv|ecsv|xml|vot)(?:\.gz)?$")
#: GaiaXPy's sampling, beside its spectra
GAIA_XP_SAMPLING = ("_sampling.csv", "_sampling.csv.gz")
_TABLES = (".csv", ".csv.gz", ".ecsv", ".ecsv.gz", ".parquet", ".xml", ".vot", ".fits")

#: source -> how the names of its files begin, for those that lie in another survey's folder
RECOGNISED = {
    "apogee": ("aspcapStar-", "apStar-", "asStar-", "ap1mStar-", r"a[ps]Visit-"),
    "sdss-v": ("mwmStar-", "mwmVisit-"),
    "lamost": (r"spec-.*_sp\d+-\d+\.fits",),
    "lamost-mrs": (r"med-.*_sp\d+-\d+\.fits",),
    "boss": (r"spec(?:Lite|Full)?-\d+p?-\d{5}-\d+\.fits",),
    "desi": (r"coadd-.*\.fits",),
    "galah": (r"\d{15}[1-4]\.fits",),
    "gaia-xp": ("XpSampledMeanSpectrum_", "XP_SAMPLED-"),
}


def is_fits(name: str) -> bool:
    """FITS, packed or not, and not hidden: any name will do for LAMOST, whose file says what it is."""
    return name.endswith((".fits", ".fits.gz")) and not name.startswith(".")


def is_table(name: str) -> bool:
    """A table of spectra, as of Gaia."""
    return name.lower().endswith(_TABLES) and not name.startswith(".")


def recognised() -> dict[str, tuple[str, ...]]:
    """:data:`RECOGNISED`, and what sources of other packages say of theirs."""
    out = dict(RECOGNISED)
    for name, entry in available_sources().items():
        if name not in out:
            try:
                out[name] = tuple(getattr(entry.load(), "file_names", ()))
            except Exception:  # another package's source that cannot be imported must not spoil a hint
                out[name] = ()
    return out


def of_another_survey(names: Iterable[str], mine: str) -> str:
    """A hint at the first of these files (paths will do) that is not of the survey `mine`, else ""."""
    patterns = recognised()
    for name in names:
        base = os.path.basename(name)
        for survey, known in patterns.items():
            if survey != mine.lower() and any(re.match(p, base) for p in known):
                return f"; {printable(base)} looks like {survey}: try `chemscale ingest {survey}`"
    return ""


def other_survey(roots: Iterable[str], mine: str) -> str:
    """A hint for folders without files of the survey `mine`: whose files lie there instead, else ""."""
    for root in roots:
        if is_remote(root) or not os.path.isdir(root):
            continue
        names = (name for _, _, files in os.walk(root) for name in files)
        if found := of_another_survey(itertools.islice(names, 10_000), mine):
            return found
    return ""


def other_products(roots: Iterable[str]) -> str:
    """A hint at APOGEE files that these folders hold instead of those of the product asked for, else ""."""
    for root in (r for r in roots if not is_remote(r)):
        folder = root if os.path.isdir(root) else os.path.dirname(root)
        for name in (n for _, _, names in os.walk(folder) for n in names):
            for pattern, hint in APOGEE_OTHERS.items():
                if re.match(pattern, name):
                    return f"; {printable(name)} is {hint}"
    return ""
