"""How fast small FITS files are read: chemscale's reader, fitsio, astropy, and the bytes alone.

    python benchmarks/reading.py --spectra DIR [--out benchmarks/results/reading.json]

`DIR` holds aspcapStar files (chemscale simulate --as-release DIR makes some). Times are
processor seconds of one process on files in the page cache: what the parsing costs, not the disk.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from chemscale.formats.fits import read_bytes, scan
from chemscale.survey.sources.apogee import ApogeeSource


def with_chemscale(path: str) -> None:
    units = scan(read_bytes(path))
    _ = units[1].image(), units[2].image(), units[4].table()


def with_astropy(path: str) -> None:
    from astropy.io import fits

    with fits.open(path, memmap=False, lazy_load_hdus=False) as units:
        _ = units[1].data, units[2].data, units[4].data


def with_fitsio(path: str) -> None:
    import fitsio

    with fitsio.FITS(path) as units:
        _ = units[1].read(), units[2].read(), units[4].read()


def bytes_only(path: str) -> None:
    Path(path).read_bytes()


def rate(read: Callable[[str], object], paths: list[str], seconds: float = 3.0) -> float:
    """Files a processor second; every file is read once before the clock starts."""
    for path in paths:
        read(path)
    count, begun = 0, time.process_time()
    while time.process_time() - begun < seconds:
        for path in paths:
            read(path)
        count += len(paths)
    return count / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spectra", required=True)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    source = ApogeeSource(arguments.spectra)
    plan = source.plan()
    items = plan.items[:500]
    paths = [item.path for item in items]
    result: dict[str, float | int] = {"files": len(paths), "bytes_a_file": Path(paths[0]).stat().st_size}
    for name, read in {
        "bytes": bytes_only,
        "chemscale": with_chemscale,
        "fitsio": with_fitsio,
        "astropy": with_astropy,
    }.items():
        try:
            result[name] = round(rate(read, paths))
        except ImportError:
            continue
    result["ApogeeSource.read"] = round(
        rate(lambda _: source.read(items, plan.wavelength, plan.elements), paths[:1]) * len(items)
    )
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
