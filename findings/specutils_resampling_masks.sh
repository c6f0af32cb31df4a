#!/usr/bin/env bash
# specutils 2.4.0: resampling a spectrum takes its masked pixels for good ones, and the result has no mask.
#
# Expected: a pixel that `Spectrum.mask` marks as bad stays out of the resampled flux, or the pixels it reaches are
# masked in the result.
# True: each of the three resamplers reads the flux alone. A masked cosmic ray of 10,000 in a flux of 1 is spread over
# its neighbours (the spline over the whole range), and `mask` of the result is None. Rejected pixels have to be
# interpolated over, or the mask resampled beside the flux, by the caller.
# Source: specutils 2.4.0, manipulation/resample.py (the mask of the input is not used).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "specutils==2.4.0" "astropy==8.0.2" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum
from specutils.manipulation import FluxConservingResampler, LinearInterpolatedResampler, SplineInterpolatedResampler

flux = np.ones(11)
flux[5] = 1e4
errors = StdDevUncertainty(np.full(11, 0.1) * u.Jy)
for resampler in (FluxConservingResampler, LinearInterpolatedResampler, SplineInterpolatedResampler):
    spectrum = Spectrum(
        spectral_axis=np.linspace(5000, 5100, 11) * u.AA, flux=flux * u.Jy, uncertainty=errors, mask=np.arange(11) == 5
    )
    out = resampler()(spectrum, np.linspace(5002, 5098, 9) * u.AA)
    print(f"{resampler.__name__}: flux {out.flux.value.round(1).tolist()}, mask {out.mask}")
    assert out.mask is None, "the result has a mask now"
    assert np.abs(out.flux.value).max() > 1000, "the masked pixel stays out now"
PYTHON
