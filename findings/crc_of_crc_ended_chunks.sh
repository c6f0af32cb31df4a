#!/usr/bin/env bash
# zarr 3.1.6 with its crc32c codec: the CRC32C of a whole file is the same number whatever its chunks hold.
#
# Expected: the CRC32C that an object store keeps of an object (Google's x-goog-hash, Amazon's x-amz-checksum-crc32c),
# or that a list of files keeps, tells one shard of an array from another.
# True: each chunk ends with its own CRC32C, and a CRC of data followed by their CRC is a constant. So the CRC32C of a
# chunk's file is one constant, and that of a shard of uncompressed chunks depends on their lengths only: exchanged,
# older or foreign shards of one shape pass. A flipped bit is still found; SHA-256, or a CRC32C of the chunks' own
# checksums, tells them apart.
# Source: Zarr v3 specification, crc32c codec (the checksum is appended to the bytes) and sharding_indexed codec (the
# index ends with one as well); linearity of cyclic redundancy checks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "zarr==3.1.6" "numpy==2.4.6" "google-crc32c==1.9.0"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import hashlib
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

folder = Path(sys.argv[1])
for kind, shards in (("one chunk a file", None), ("shards of four chunks", (64, 50))):
    sums, digests = [], []
    for seed in range(3):
        flux = np.random.default_rng(seed).normal(1, 0.1, (64, 50)).astype("f4")
        path = folder / f"{kind} {seed}"
        chunks = (64, 50) if shards is None else (16, 50)
        array = zarr.create_array(path, data=flux, chunks=chunks, shards=shards, compressors=[Crc32cCodec()], filters=None)
        assert np.array_equal(zarr.open_array(path)[:], flux)
        data = (path / "c" / "0" / "0").read_bytes()
        sums.append(google_crc32c.value(data))
        digests.append(hashlib.sha256(data).hexdigest()[:12])
    print(f"{kind}: CRC32C {[hex(s) for s in sums]}, SHA-256 {digests}")
    assert len(set(digests)) == 3, "the files are the same"
    assert len(set(sums)) == 1, "the CRC32C of the files tells them apart now"
PYTHON
