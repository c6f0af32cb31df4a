#!/usr/bin/env bash
# specutils 2.4.0: a continuum-normalised spectrum written as "tabular-fits" is not read back.
#
# Expected: what `Spectrum.write(..., format="tabular-fits")` writes, `Spectrum.read(..., format="tabular-fits")` reads,
# whatever the unit of the flux; a continuum-normalised spectrum has none (dimensionless).
# True: with a flux in Jy it is so. A dimensionless flux is written as a column "flux" without a unit, and the reader
# knows a flux by its unit, not by its name: it ends with "Could not identify column containing the flux".
# A `column_mapping` for the reader brings the spectrum back.
# Source: specutils 2.4.0, io/parsing_utils.py (generic_spectrum_from_table looks for columns with units of flux).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "specutils==2.4.0" "astropy==8.0.2" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys

import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum

path = f"{sys.argv[1]}/spectrum.fits"
wavelength = np.linspace(5000, 5100, 11) * u.AA
outcome = {}
for unit in (u.Jy, u.dimensionless_unscaled):
    errors = StdDevUncertainty(np.full(11, 0.1) * unit)
    Spectrum(spectral_axis=wavelength, flux=np.ones(11) * unit, uncertainty=errors).write(
        path, format="tabular-fits", overwrite=True
    )
    try:
        outcome[str(unit)] = str(Spectrum.read(path, format="tabular-fits").flux[0])
    except OSError as problem:
        outcome[str(unit)] = str(problem)
    print(f"flux in {str(unit) or 'no unit'!r}: {outcome[str(unit)]}")
mapping = {
    "wavelength": ("spectral_axis", "Angstrom"),
    "flux": ("flux", u.dimensionless_unscaled),
    "uncertainty": ("uncertainty", u.dimensionless_unscaled),
}
read = Spectrum.read(path, format="tabular-fits", column_mapping=mapping)
print(f"with a column mapping: {read.flux[0]}")
assert outcome["Jy"] == "1.0 Jy"
assert "Could not identify column containing the flux" in outcome[""], "normalised spectra are read back now"
assert read.flux[0] == 1
PYTHON
