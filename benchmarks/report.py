"""Opening time and size of a report in headless Chromium, each time in a fresh browser context.

``python benchmarks/report.py RUN/report.html --repeat 5 --out benchmarks/results/report.json``; needs the extra
`browser` and a Chromium on the PATH. Times are wall seconds; take them on an idle machine.

``python benchmarks/report.py --make 100000 WORK/run/report.html`` first makes the run: the survey of growth.py with
1,500 pixels, a fit of 30 components in 4 passes, the rates, the studies of the demo, a searched metric left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]
PIXELS = 1500
DRAWN = "document.querySelectorAll('{}.main-svg').length > 0"


def measure(path: Path, repeat: int) -> dict[str, list[float]]:
    """Seconds until the load event, until the first chart, and from scrolling to the scatter until it is drawn."""
    chromium = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    found: dict[str, list[float]] = {"load": [], "first_chart": [], "scatter_after_scrolling": []}
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        for _ in range(repeat):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            start = time.perf_counter()
            page.goto(path.resolve().as_uri(), wait_until="load")
            found["load"].append(time.perf_counter() - start)
            page.wait_for_function(DRAWN.format(""))
            found["first_chart"].append(time.perf_counter() - start)
            page.evaluate("document.getElementById('scatter').scrollIntoView()")
            start = time.perf_counter()
            page.wait_for_function(DRAWN.format("#scatter "))
            found["scatter_after_scrolling"].append(time.perf_counter() - start)
            page.context.close()
        browser.close()
    return found


def make(stars: int, report: Path) -> None:
    """A run on a simulated survey of so many stars, and its report at the path that is asked for."""
    from growth import survey

    from chemscale.survey.ingest.datasets import write_survey

    run, store = report.parent, report.parent.parent / "survey.zarr"
    if not store.exists():
        write_survey(survey(stars, PIXELS), store)
    for words in (
        ("rsca", "fit", store, "--run", run, "--components", 30, "--max-passes", 4),
        ("rsca", "evaluate", "--run", run),
        ("study", "dimensionality", "features", "ablation", "per_cluster", "--run", run),
        ("report", "--run", run, "--out", report),
    ):
        subprocess.run([sys.executable, "-m", "chemscale", *map(str, words)], check=True)


def main() -> None:
    """Measure and print; with --out also write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--make", type=int, metavar="STARS", help="Make the run first.")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.report)
    busy = os.getloadavg()[0]
    seconds = measure(args.report, args.repeat)
    made = f"--make {args.make} " if args.make else ""
    result = {
        "command": f"python benchmarks/report.py {made}{args.report.name} --repeat {args.repeat}",
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, load {busy:.1f} before",
        "megabytes": round(args.report.stat().st_size / 1e6, 2),
        "seconds": {k: [round(x, 3) for x in v] for k, v in seconds.items()},
        "median_s": {k: round(statistics.median(v), 3) for k, v in seconds.items()},
    }
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
