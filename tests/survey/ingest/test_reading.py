"""What travels to a worker, and files that are announced before they are read."""

from __future__ import annotations

import os
import pickle

import numpy as np
from toysource import ToySource, write_files

from chemscale.runtime.files import Folder
from chemscale.survey.ingest.ingestion import make_task
from chemscale.survey.ingest.planning import plan_ingest
from chemscale.survey.ingest.reading import RowReader, empty_pixels, will_read
from chemscale.survey.sources.base import Item
from chemscale.survey.sources.labels import PackedItems, RowLabels
from chemscale.survey.store.layout import Layout


def test_items_travel_as_columns_and_read_the_same():
    columns = {
        "teff": np.arange(1000.0),
        "abundance": np.arange(3000.0).reshape(1000, 3),
        "visits": np.array(["a"] * 1000),
    }
    other = {"teff": np.full(5, 7.0)}
    items = [
        Item("a", "a.fits", RowLabels(columns, 998, {"cluster": "M 67"})),
        Item("b", "b.fits", {"teff": 1.5, "cluster": ""}),
        Item("c", "c.fits", RowLabels(columns, 3)),
        Item("d", "d.fits", RowLabels(other, 4)),
        Item("e", "e.fits"),
    ]
    sent = pickle.dumps(PackedItems.of(items))
    assert len(sent) < 2000  # two rows of the catalogue, not a thousand
    back = pickle.loads(sent).unpack()
    assert [(i.star_id, i.path, dict(i.labels)) for i in back] == [(i.star_id, i.path, dict(i.labels)) for i in items]


def test_a_task_reads_the_same_after_its_journey(tmp_path):
    job = plan_ingest(ToySource(write_files(tmp_path / "spectra", n=20)), layout=Layout(4, 8, 16))
    task = make_task(Folder(tmp_path / "out"), job, 1)
    sent = pickle.loads(pickle.dumps(task))
    read = []
    for each in (task, sent):
        reader, pixels = RowReader(each), empty_pixels(8, 40)
        reader.fill(pixels, 0, 8)
        read.append((pixels, reader.columns))
    for name in read[0][0]:
        np.testing.assert_array_equal(read[0][0][name], read[1][0][name])
    for name in read[0][1]:
        np.testing.assert_array_equal(read[0][1][name], read[1][1][name])


def test_announcing_leaves_problems_to_the_reader(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    will_read([str(tmp_path / n) for n in ("fifo", "empty", "absent")] + ["a\0b", str(tmp_path), "s3://bucket/key"])
