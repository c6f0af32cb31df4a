"""Siblings that are no clusters: tables of pairs and groups, their weights, and what a search learns from them."""

import json

import numpy as np
import pytest
from helpers import make_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.errors import InputError
from chemscale.rsca.companions import SiblingGroups, group_weights, parse_weights, read_pairs
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.pipeline import fit_run
from chemscale.rsca.representation import Representation
from chemscale.rsca.stars import RunStars
from chemscale.runtime.run import Run
from chemscale.survey.ingest.datasets import write_survey

IDS = np.array([f"s{i}" for i in range(10)])


def write(path, text):
    path.write_text(text)
    return str(path)


def test_pairs_that_share_a_star_are_one_group(tmp_path):
    table = write(
        tmp_path / "p.csv", "star_1,star_2,kind\ns0,s1,binary\ns1,s2,binary\ns5,s6,repeat\ns7,elsewhere,binary\n"
    )
    found = read_pairs(table, IDS)
    assert found.group[0] == found.group[1] == found.group[2] != found.group[5]
    assert found.group[5] == found.group[6] == "repeat/00001"
    assert not found.group[[3, 4, 7, 8, 9]].any()
    assert found.kinds == {"binary": 1, "repeat": 1} and found.unknown == 1


def test_a_table_of_one_star_a_row_names_groups(tmp_path):
    table = write(tmp_path / "g.csv", "star_id,group\ns0,a\ns1,a\ns2,b\ns3,b\ns4,c\n")
    found = read_pairs(table, IDS)
    assert found.kinds == {"pair": 2}
    assert found.group[0] == found.group[1] and found.group[2] == found.group[3] and not found.group[4]


def test_tables_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="no column"):
        read_pairs(write(tmp_path / "a.csv", "x,y\n1,2\n"), IDS)
    with pytest.raises(InputError, match="no group has two stars"):
        read_pairs(write(tmp_path / "b.csv", "star_1,star_2\ns0,t1\n"), IDS)
    with pytest.raises(InputError, match="two kinds"):
        read_pairs(write(tmp_path / "c.csv", "star_1,star_2,kind\ns0,s1,binary\ns1,s2,repeat\n"), IDS)


def test_weights_go_by_kind():
    group = np.array(["repeat/1", "repeat/1", "binary/1", "binary/1", ""])
    assert group_weights(group).tolist() == [0.3, 0.3, 1.0, 1.0, 0.0]
    assert group_weights(group, parse_weights(["binary=0.5"])).tolist() == [0.3, 0.3, 0.5, 0.5, 0.0]
    with pytest.raises(InputError, match="no group is of that kind"):
        group_weights(group, {"twin": 1.0})
    with pytest.raises(InputError, match="KIND=WEIGHT"):
        parse_weights(["repeat"])


def test_groups_add_to_the_scatter_that_is_learned_from():
    rng = np.random.default_rng(0)
    field, clusters = rng.normal(size=(500, 4)), np.repeat(["a", "b", "c", "d"], 5)
    members = rng.normal(size=(4, 4)).repeat(5, axis=0) + 0.3 * rng.normal(size=(20, 4))
    engine = Evaluation(field, members, clusters)
    pairs = rng.normal(size=(200, 4)).repeat(2, axis=0) + 0.3 * rng.normal(size=(400, 4))
    names = np.repeat([f"g{i}" for i in range(200)], 2)
    alone = Representation(engine).within()
    for weight in (1.0, 0.0):
        siblings = SiblingGroups(pairs, names, np.full(400, weight))
        within = Representation(engine, siblings=siblings).within()
        if weight:  # 200 more degrees of freedom: the true covariance is found
            assert np.abs(within - 0.09 * np.eye(4)).max() < 0.5 * np.abs(alone - 0.09 * np.eye(4)).max()
        else:
            np.testing.assert_allclose(within, alone)
    left = Representation(engine, siblings=SiblingGroups(pairs, names, np.ones(400))).within((0, 1))
    assert not np.allclose(left, within)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    ds = make_survey(400, 6, 6, n_pixels=40, seed=3)
    write_survey(ds, folder / "survey.zarr")
    field = np.flatnonzero(ds["cluster"].values.astype(str) == "")
    ids = ds["star_id"].values.astype(str)
    member = ids[ds["cluster"].values.astype(str) != ""][0]
    rows = [f"{ids[a]},{ids[b]},binary" for a, b in field[:40].reshape(-1, 2)]
    table = folder / "pairs.csv"
    table.write_text("\n".join(["star_1,star_2,kind", *rows, f"{member},{ids[field[60]]},repeat"]) + "\n")
    return folder / "survey.zarr", table


def test_pairs_are_neither_field_nor_rated(survey, tmp_path):
    store, table = survey
    words = ["rsca", "fit", str(store), "--run", str(tmp_path / "run"), "--components", "4", "--metric", "auto"]
    done = CliRunner().invoke(build(), [*words, "--pairs", str(table), "--pair-weight", "binary=0.5", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)["selection"]["pairs"]
    assert facts["stars"] == 40  # the pair of a member and a field star is none
    run = Run.open(tmp_path / "run")
    for name in ("embedding.zarr", "embedding_auto.zarr"):
        stars = RunStars.read(run, name)
        assert stars.siblings is not None and len(stars.sibling_rows) == 40
        assert set(stars.siblings.weights) == {0.5}
        assert len(stars.field_rows) == 360 and len(stars.member_rows) == 36
    done = CliRunner().invoke(build(), ["rsca", "evaluate", "--run", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["n_clusters"] == 6 and result["n_field"] == 360


def test_pairs_need_the_searched_metric(survey, tmp_path):
    store, table = survey
    with pytest.raises(InputError, match="knows clusters alone"):
        fit_run(str(store), tmp_path / "run", components=4, pairs=str(table))
    with pytest.raises(InputError, match="no pairs"):
        fit_run(str(store), tmp_path / "run", components=4, metric="auto", pair_weights={"binary": 1.0})
