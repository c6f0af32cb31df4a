#!/usr/bin/env bash
# astropy 8.0.2 with pyarrow 26.0.1: one missing value changes the identifiers of a Parquet column, and masks are written
# as numbers.
#
# Expected: Parquet knows nulls for every type, astropy masks. `Table.read` masks a null and leaves the other integers
# as they are; `Table.write` makes a masked value a null, so that any reader sees that it is missing.
# True: reading, a single null turns a whole column of 64-bit integers into float64 without a warning. Gaia's source_id
# has 19 digits, a float64 tells 16: identifiers change, and two stars that lie side by side become one. (A column of
# texts with a null ends in a TypeError.) Writing, a masked value is stored as the number below its mask, beside a
# second column NAME.mask that only astropy understands: pyarrow, pandas and the rest read -9999 and count no null.
# Both ways concern what people join: a catalogue where not every star has a Gaia identifier or a velocity.
# Source: astropy 8.0.2, astropy/io/misc/parquet.py (read_table_parquet: ``col = pa_table[name].to_numpy()``, which is
# float64 with NaN where integers have nulls; write_table_parquet serialises masked columns as data and mask); Arrow's
# page "NumPy Integration" allows to_numpy "assuming the Arrow data has no nulls". The same loss in `Table.to_pandas` is
# astropy issue 9280, mended there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "astropy==8.0.2" "pyarrow==26.0.1" "pandas==3.1.1" "numpy==2.4.6"
"$folder/venv/bin/python" -W error - "$folder" <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import MaskedColumn, Table

path = f"{sys.argv[1]}/catalogue.parquet"
NEIGHBOURS = [5853498713190525697, 5853498713190525698]  # two identifiers that follow one another

for name, ids in (("without a null", NEIGHBOURS), ("with a null", [*NEIGHBOURS, None])):
    pq.write_table(pa.table({"source_id": pa.array(ids, pa.int64())}), path)
    column = Table.read(path)["source_id"]
    read = [int(value) for value in column[:2]]
    print(f"{name}: {type(column).__name__} of {column.dtype}, {read}")
    if None in ids:
        assert read != NEIGHBOURS and read[0] == read[1], "identifiers beside a null are read as they are now"
    else:
        assert read == NEIGHBOURS

velocity = MaskedColumn([12.5, -9999.0], mask=[False, True], name="velocity")
Table([velocity]).write(path, overwrite=True)
written = pq.read_table(path)
print(f"masked by astropy, as pyarrow reads it: {written.to_pydict()}, nulls {written['velocity'].null_count}")
assert Table.read(path)["velocity"].mask.tolist() == [False, True]
assert written["velocity"].null_count == 0 and written["velocity"][1].as_py() == -9999.0, "masked values are nulls now"
PYTHON
