#!/usr/bin/env bash
# astropy 8.0.2: Table.read does not see that an integer of a scaled FITS column is undefined.
#
# Expected: TNULLn is compared with the integers that stand in the file, before TSCALn and TZEROn are applied (FITS
# Standard 4.0, section 7.3.2): an undefined entry of a column of tenths (TSCAL = 0.1, TNULL = -32768) is masked, and so
# is one of an unsigned column (TZERO = 32768, TNULL = -32768).
# True: `Table.read` compares TNULL with the values after scaling. Tenths: nothing is masked and the undefined entry
# reads as the number -3276.8, without a warning. Unsigned integers: reading the whole table ends in a TypeError, since
# -32768 cannot be a value of uint16. Without scaling the entry is masked, as it should be.
# Catalogues that pack magnitudes or velocities as scaled integers lose their gaps so.
# Source: astropy 8.0.2, astropy/io/fits/connect.py (read_table_fits: ``mask = data[col.name] == col.null``).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "astropy==8.0.2" "numpy==2.4.6"
"$folder/venv/bin/python" -W error - "$folder" <<'PYTHON'
import sys

import numpy as np
from astropy.io import fits
from astropy.table import Table

path = f"{sys.argv[1]}/table.fits"
STORED = np.array([1234, -32768], ">i2")  # a value, and one that is undefined


def read(**scaling):
    """What Table.read makes of the column, whose bytes are always the same."""
    cards = {"XTENSION": "BINTABLE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 2, "NAXIS2": 2, "PCOUNT": 0, "GCOUNT": 1}
    cards |= {"TFIELDS": 1, "TTYPE1": "V", "TFORM1": "I", "TNULL1": -32768, **scaling}
    content = STORED.tobytes()
    parts = [fits.PrimaryHDU().header.tostring(), fits.Header(cards.items()).tostring()]
    with open(path, "wb") as file:
        file.write("".join(parts).encode() + content + b"\0" * (-len(content) % 2880))
    try:
        return Table.read(path)["V"]
    except TypeError as problem:
        return problem


plain, tenths, unsigned = read(), read(TSCAL1=0.1), read(TSCAL1=1, TZERO1=32768)
for name, found in (("not scaled", plain), ("tenths", tenths), ("unsigned", unsigned)):
    print(f"{name}: {found!r}" if isinstance(found, TypeError) else f"{name}: {found.tolist()}")
assert plain.tolist() == [1234, None]
assert np.allclose(tenths, [123.4, -3276.8]) and not np.ma.getmaskarray(tenths).any(), "scaled columns are masked now"
assert isinstance(unsigned, TypeError), "undefined unsigned integers are read now"
PYTHON
