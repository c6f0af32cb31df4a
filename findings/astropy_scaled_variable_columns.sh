#!/usr/bin/env bash
# astropy 8.0.2: of a scaled FITS column of variable length the first row alone is scaled, and cut to integers.
#
# Expected: TSCALn and TZEROn of a variable-length column apply to the values of its arrays (FITS Standard 4.0, sections
# 7.3.2 and 7.3.5): shorts 13, -13, 64 with TSCAL = 0.0001, TZERO = 1 are 1.0013, 0.9987, 1.0064 in every row, and with
# TZERO = 32768 they are unsigned integers.
# True: in the first row the scaled values are stored back into the short integers of the file (1, 0, 1); all other rows
# come as they stand in the file. Unsigned integers: -32755, ... in the first row, 13, ... in the others.
# Masks that spectrographs write as unsigned integers of variable length mean other pixels so, without a warning.
# Source: astropy 8.0.2, astropy/io/fits/fitsrec.py (FITS_rec._convert_other and FITS_rec.field on 'P' formats).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "astropy==8.0.2" "numpy==2.4.6"
"$folder/venv/bin/python" -W error - "$folder" <<'PYTHON'
import sys

import numpy as np
from astropy.io import fits

path = f"{sys.argv[1]}/table.fits"
STORED = np.array([[13, -13, 64]] * 3, ">i2")  # three rows, all alike


def read(**scaling):
    """The rows that astropy makes of the column, whose bytes are always the same."""
    cards = {"XTENSION": "BINTABLE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 3, "PCOUNT": STORED.nbytes}
    cards |= {"GCOUNT": 1, "TFIELDS": 1, "TTYPE1": "V", "TFORM1": "1PI(3)", **scaling}
    content = np.array([[3, 6 * row] for row in range(3)], ">i4").tobytes() + STORED.tobytes()
    parts = [fits.PrimaryHDU().header.tostring(), fits.Header(cards.items()).tostring()]
    with open(path, "wb") as file:
        file.write("".join(parts).encode() + content + b"\0" * (-len(content) % 2880))
    with fits.open(path) as units:
        return [np.asarray(row).tolist() for row in units[1].data["V"]]


plain, scaled, unsigned = read(), read(TSCAL1=1e-4, TZERO1=1.0), read(TSCAL1=1, TZERO1=32768)
for name, rows in (("not scaled", plain), ("TSCAL = 0.0001, TZERO = 1", scaled), ("TZERO = 32768", unsigned)):
    print(f"{name}: {rows}")
assert plain == STORED.tolist()
assert scaled == [[1, 0, 1], [13, -13, 64], [13, -13, 64]], "scaled rows are read otherwise now"
assert unsigned[1:] == plain[1:] and unsigned[0] != [32781, 32755, 32832], "unsigned rows are read otherwise now"
PYTHON
