"""The page is whole, self-contained and safe, with every product and with few of them."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from toyrun import hostile, make_latents_run, make_run, toy_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.errors import StoreError
from chemscale.report import build_report, charts, products
from chemscale.report.html import _rate, _rates_alike
from chemscale.results.run import RunResults
from chemscale.runtime.run import Run
from chemscale.studies.registry import run_study


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = make_run(tmp_path_factory.mktemp("report"), hostile(toy_survey(n_field=300, n_pixels=80)))
    run_study("ablation", out)
    return out


@pytest.fixture(scope="module")
def page(run):
    return build_report(run).read_text(encoding="utf-8")


def body(page):
    """The page without its scripts and style."""
    return re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.S)


def data(page):
    return json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.S).group(1))


def test_nothing_is_loaded_from_anywhere(page):
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', body(page)) == []
    assert "default-src 'none'" in page
    assert len(page) < 15e6


def test_key_numbers_are_those_of_the_evaluation(run, page):
    evaluation = run.load_json("evaluation.json")
    text = body(page)
    for key in ("raw", "rsca", "rsca_top"):
        assert _rate(evaluation[key]) in text
    assert str(evaluation["n_members"]) in text and "What each step brings" in text
    for cluster, row in evaluation["per_cluster"].items():
        if not cluster.startswith("<"):
            assert f"<td>{cluster}</td><td>{row['n_members']}</td>" in text


def test_one_card_stands_out_and_it_is_the_recommended_rate(run, page):
    best = run.load_json("evaluation.json")["recommended"]
    cards = re.findall(r'<li class="key"><b>([^ <]*)', body(page))
    assert best["metric"] == "paper" and cards == [_rate(best["rate"])]
    for method in ("rsca_top", "auto"):
        marker = charts.rates({"raw": 0.2, "rsca_top": 0.1, "auto": 0.1}, {}, method)["data"][0]["marker"]
        assert marker["symbol"] == ["circle", *("diamond" if m == method else "circle" for m in ("rsca_top", "auto"))]


def test_hostile_names_stay_text(page):
    text = body(page)
    assert "<img src=x" not in page and "Evil &amp; Co" in text and "<b onmouseover" not in text
    ids = data(page)["explore"]["star_id"]
    assert "</script><img src=x onerror=window.owned=1>" in ids  # whole, as data
    figure = json.dumps(data(page)["charts"]["clusters"])
    assert "<b onmouseover" not in figure and "&lt;b onmouseover" in figure


def test_embedded_stars_give_the_metric_back(run, page):
    """Features of the page are those of the run's recommended metric."""
    e = data(page)["explore"]

    def unpack(p):
        return np.frombuffer(base64.b64decode(p["data"]), "<" + p["dtype"])

    n, f = len(e["star_id"]), e["n_features"]
    features = unpack(e["features"]).reshape(n, f)
    expected = RunResults(run.path).features().sel(star=e["star_id"]).values
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert features.std(0)[0] > features.std(0)[-1]  # most scaled first
    assert n == 300 + 48
    codes = unpack(e["spectra"]["flux"]).reshape(len(e["spectra"]["rows"]), -1).astype(float)
    flux = e["spectra"]["low"] + e["spectra"]["step"] * np.where(codes == 65535, np.nan, codes)
    from chemscale import open_survey

    survey = open_survey(run.store)
    ids = [str(i) for i in survey["star_id"].values]
    row = ids.index(e["star_id"][e["spectra"]["rows"][3]])
    seen, missing = products.read_spectra(survey, np.array([row]))
    good = np.isfinite(flux[3])
    assert good.sum() == (~missing).sum()
    np.testing.assert_allclose(flux[3][good], np.clip(seen[0][good], *_limits(flux)), atol=1e-3)


def _limits(flux):
    return np.nanmin(flux), np.nanmax(flux)


def test_a_run_with_nothing_yet_says_what_to_do(tmp_path):
    Run.create(tmp_path / "run", store="missing.zarr")
    page = build_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "chemscale rsca evaluate --run" in page and "chemscale rsca fit STORE --run" in page
    with pytest.raises(StoreError, match="not a chemscale run"):
        build_report(tmp_path / "nowhere")


def test_findings_of_the_models_are_tables(tmp_path):
    out = make_latents_run(tmp_path, toy_survey(n_field=60, n_clusters=2, n_pixels=30))
    evil = "<img src=x onerror=window.owned=1>"
    out.save_json(
        "flags.json",
        {
            "counts": {"carbon_enhanced": 1234},
            "units": "sigma",
            "outlying": {"fe": {"enhanced": 3, "depleted": 4}},
            "stars": {"carbon_enhanced": [{"star_id": evil, "probability": 0.91}]},
        },
    )
    out.save_json(
        "vae_evaluation.json",
        {
            "n_held_out": 18,
            "r_fe_h": 0.98765,
            "correlations": {"fe": {"fe_h": 0.9, "teff": -0.01}},
            "flags": {"carbon_enhanced": {"precision": 0.5, "recall": None}},
        },
    )
    rows = [{"label": evil, "rate": 0.0123456}, {"label": "b", "rate": 0.2}]
    out.save_json("auto.json", {"rate": 0.01, "candidates": rows})
    side = {"rsca": 0.02, "rsca_top": 0.01, "correlation": [0.1, -0.3, None]}
    out.save_json("nuisance_snr.json", {"covariate": "snr", "removed": 2, "before": side, "after": side})
    page = build_report(out).read_text(encoding="utf-8")
    text = body(page)
    for id_ in ("flags", "quality", "choice", "nuisance"):
        assert f'<section id="{id_}">' in text and f'href="#{id_}"' in text
    for there in ("1,234", "carbon enhanced", "0.9877", "-0.01", "0.01235", "2 axes that follow snr", "0.3"):
        assert there in text, there
    assert evil not in page and "&lt;img src=x" in text


def test_studies_without_figure_or_with_much_data(run, tmp_path):
    import shutil

    shutil.copytree(run.path, tmp_path / "run")
    folder = tmp_path / "run" / "studies" / "ablation"
    (folder / "figure.png").unlink()
    (folder / "data.csv").write_text("x\n" + "1\n" * 120_000)
    other = tmp_path / "run" / "studies" / "somebody_elses"
    other.mkdir()
    summary = {"name": "somebody_elses", "title": "From another package", "source": "<b>me</b>", "numbers": {"n": 7}}
    (other / "summary.json").write_text(json.dumps(summary))
    (other / "data.csv").write_text("name,rate\na,0.123456\n<i>b</i>,2\n")
    noise = np.random.default_rng(0).integers(0, 255, (600, 700, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(noise).save(other / "figure.png")
    text = body(build_report(tmp_path / "run").read_text(encoding="utf-8"))
    assert "data.csv</code>" in text and "From another package" in text  # named where it is too much to embed
    assert "0.1235" in text and "&lt;i&gt;b" in text and "<i>b" not in text and "<b>me" not in text
    embedded = re.search(r'src="data:image/png;base64,([^"]*)"', text.split("From another package")[1]).group(1)
    assert len(embedded) < (other / "figure.png").stat().st_size  # 256 colours


def test_a_run_of_latents_alone(tmp_path):
    out = make_latents_run(tmp_path, hostile(toy_survey(n_field=120, n_clusters=3, n_pixels=40)))
    page = build_report(out).read_text(encoding="utf-8")
    e = data(page)["explore"]
    assert e["n_features"] == 3 and e["spectra"]["basis"] is None
    text = body(page)
    assert 'id="training"' in text and 'id="rates"' not in text and "in units of their scatter" in text
    assert "<b onmouseover" not in text


def test_the_survey_may_be_gone(tmp_path):
    import shutil

    out = make_run(tmp_path, toy_survey(n_field=150, n_clusters=3, n_pixels=40))
    shutil.rmtree(tmp_path / "survey.zarr")
    page = build_report(out).read_text(encoding="utf-8")
    assert "Spectra are left out" in page and data(page)["explore"]["spectra"] is None


def test_command(run, tmp_path):
    result = CliRunner().invoke(
        build(), ["report", "--run", str(run.path), "--out", str(tmp_path / "r.html"), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["megabytes"] < 15
    assert (tmp_path / "r.html").exists()


def test_small_rates_keep_their_digits():
    assert [_rate(v) for v in (0.25, 0.0, 1.3e-6, 0.00051, float("nan"))] == [
        "0.2500",
        "0.0000",
        "1.3e-06",
        "0.0005",
        "–",
    ]


def test_rates_of_a_column_have_as_many_decimals_each():
    assert _rates_alike([0.25, 0.0, float("nan")]) == ["0.2500", "0.0000", "–"]
    assert _rates_alike([0.25, 0.00031, 0.00002]) == ["0.25000", "0.00031", "0.00002"]
    assert _rates_alike([0.25, 1e-9]) == ["0.250000", "0.000000"] and _rates_alike([]) == []


def test_an_empty_panel_of_censored_pixels_says_that_none_is():
    wave, flux = np.arange(5.0), np.ones(5)
    told = [json.dumps(charts.spectra(wave, flux, censored, "Å")) for censored in (np.zeros(5), np.eye(5)[0])]
    assert ["no pixel is censored" in t for t in told] == [True, False]


def test_a_stage_without_an_answer_leaves_no_word_and_noise_is_told_where_it_is_one_number(run, page):
    """`on_one_star` is an empty text where no component rests on one star; per-pixel errors are no single noise."""
    facts = Run.open(run.path).manifest["stages"]["embed"]["facts"]
    assert facts["on_one_star"] == "" and "on one star" not in page
    assert ("noise puts into one pixel" in page) == ("noise of a pixel" in page)


def test_pieces():
    assert charts.plain("<b>&") == "&lt;b&gt;&amp;"
    assert json.loads(charts.script_json({"a": "</script>&"})) == {"a": "</script>&"}
    assert "<" not in charts.script_json(["</script>"])
    binned = products.bin_pixels(np.array([[1.0, np.nan, 3.0, 5.0, np.nan, np.nan]]), 2)
    np.testing.assert_allclose(binned, [[1.0, 4.0, np.nan]])
    codes, low, step = products.quantise(np.array([[0.5, 1.0, np.nan]]))
    assert codes[0, 2] == 65535 and low + step * codes[0, 0] == pytest.approx(0.5, abs=1e-3)
