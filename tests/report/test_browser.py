"""The page in a real browser: it draws, answers clicks and keys, and hostile names do nothing."""

from __future__ import annotations

import csv
import shutil
import time

import pytest
from toyrun import hostile, make_latents_run, make_run, toy_survey

from chemscale.report import build_report
from chemscale.studies.registry import run_study

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with sync_api.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("browser"), hostile(toy_survey(n_field=300, n_pixels=80)))
    run_study("dimensionality", run)
    return build_report(run)


def open_page(browser, path, **options):
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}).new_page()
    problems = []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("dialog", lambda d: problems.append(f"dialog {d.message}"))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url))
    page.goto(path.as_uri())
    return page, problems


def walk(page):
    """Scroll through the page so that every chart is drawn."""
    for y in range(0, page.evaluate("document.body.scrollHeight"), 600):
        page.evaluate(f"window.scrollTo({{top: {y}, behavior: 'instant'}})")
        time.sleep(0.15)
    page.wait_for_function("document.querySelectorAll('#scatter .main-svg').length > 0")


def test_draws_everything_without_an_error(browser, path):
    page, problems = open_page(browser, path)
    walk(page)
    charts = (
        "chart-rates",
        "chart-clusters",
        "scatter",
        "scatter-labels",
        "spectrum",
        "chart-spectra",
        "heat",
        "members",
    )
    for chart in charts:
        page.locator(f"#{chart}").scroll_into_view_if_needed()
        page.wait_for_function(f"document.querySelectorAll('#{chart} .main-svg').length > 0")
    assert problems == []
    assert page.evaluate("window.owned") is None


def test_finds_a_star_and_its_siblings_by_keyboard(browser, path):
    page, problems = open_page(browser, path)
    walk(page)
    page.fill("#star", "S00030")
    page.press("#star", "Enter")
    chosen = page.evaluate("chemscaleReport.chosen")
    assert "S00030" in chosen
    assert page.locator("#siblings tbody tr").count() == 11
    assert page.evaluate("chemscaleReport.nearest.length") == 10
    distances = [float(t) for t in page.locator("#siblings tbody tr td:nth-child(2)").all_inner_texts()[1:]]
    assert distances == sorted(distances)
    page.locator("#siblings tbody tr:nth-child(3) button").click()  # overlays
    page.locator("#siblings tbody tr:nth-child(3) button").click()  # chooses
    assert page.evaluate("chemscaleReport.chosen") != chosen
    page.fill("#star", "no such star")
    page.press("#star", "Enter")
    assert "No star" in page.inner_text("#who")
    assert problems == []


def test_click_on_a_point_chooses_its_star(browser, path):
    page, problems = open_page(browser, path)
    walk(page)
    page.locator("#scatter").scroll_into_view_if_needed()
    page.evaluate(
        "() => { const el = document.getElementById('scatter');"
        "el.emit('plotly_click', {points: [{customdata: el.data[0].customdata[5]}]}); }"
    )
    assert page.evaluate("chemscaleReport.chosen") == page.evaluate(
        "() => document.getElementById('scatter').data[0].text[5].split('<br>')[0]"
    )
    page.select_option("#colour", "teff")
    page.select_option("#x-axis", "fe_h")
    assert page.evaluate("document.getElementById('scatter').layout.xaxis.title.text") == "[Fe/H] (dex)"
    assert problems == []


def test_hostile_star_is_inert(browser, path):
    page, problems = open_page(browser, path)
    walk(page)
    page.fill("#star", "</script>")
    page.press("#star", "Enter")
    assert page.evaluate("chemscaleReport.chosen").startswith("</script>")
    page.fill("#star", "javascript:")
    page.press("#star", "Enter")
    page.mouse.wheel(0, 300)
    time.sleep(0.3)
    assert page.evaluate("window.owned") is None
    assert page.locator("img[src=x]").count() == 0
    assert page.locator('a[href^="javascript"]').count() == 0
    assert problems == []


def test_dark_phone_and_print(browser, path):
    page, problems = open_page(browser, path, color_scheme="dark", viewport={"width": 390, "height": 800})
    walk(page)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("window.scrollTo(0, 0)")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate("document.getElementById('scatter').layout.font.color") == "#1b1f24"
    page.emulate_media(media="print")
    assert not page.locator(".bar").is_visible()
    assert page.pdf()[:4] == b"%PDF"
    assert problems == []


BOX = "(e) => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }"


@pytest.mark.parametrize("width", [1280, 390])
def test_no_legend_runs_under_a_toolbar_and_no_toolbar_over_a_plot(browser, path, width):
    """On a touch screen toolbars are always shown."""
    page, _ = open_page(browser, path, viewport={"width": width, "height": 900}, has_touch=True, is_mobile=True)
    walk(page)
    checked = 0
    for plot in page.locator(".chart.js-plotly-plot").all():
        bar = plot.locator(".modebar-group")
        left, _, right, bottom = [
            f([b.evaluate(BOX)[k] for b in bar.all()]) for k, f in enumerate((min, min, max, max))
        ]
        for part in plot.locator(".legend, .plot-container .main-svg .nsewdrag").all():
            box = part.evaluate(BOX)
            name = f"{plot.get_attribute('id')} {part.get_attribute('class')}"
            assert box[2] <= left or box[0] >= right or box[1] >= bottom - 1 or box[2] == box[0], name
            checked += 1
    assert checked > 8


def test_the_cluster_table_is_whole_on_a_desktop(browser, path):
    page, _ = open_page(browser, path)
    sizes = page.evaluate(
        "() => { const t = document.querySelector('#clusters').parentElement;"
        "return [t.scrollWidth, t.clientWidth, t.scrollHeight, t.clientHeight]; }"
    )
    assert sizes[0] == sizes[1] and sizes[2] == sizes[3]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_page_of_latents(browser, tmp_path):
    run = make_latents_run(tmp_path, toy_survey(n_field=120, n_clusters=3, n_pixels=40))
    page, problems = open_page(browser, build_report(run))
    walk(page)
    assert page.locator("#siblings tbody tr").count() == 11
    assert page.locator("#spectrum .main-svg").count() > 0
    assert page.locator("#heat .main-svg").count() > 0
    assert problems == []


def test_table_sorts(browser, path):
    page, _ = open_page(browser, path)
    page.locator("#clusters th button").nth(2).click()
    values = [float(t) for t in page.locator("#clusters tbody td:nth-child(3)").all_inner_texts()]
    assert values == sorted(values)


def test_a_kiel_diagram_and_the_sky_run_as_astronomers_draw_them(browser, path):
    page, problems = open_page(browser, path)
    walk(page)
    layout = "document.getElementById('scatter-labels').layout"
    page.select_option("#view", label="Kiel diagram")
    x, y = page.evaluate(f"{layout}.xaxis.range"), page.evaluate(f"{layout}.yaxis.range")
    assert x[0] > x[1] and y[0] > y[1] and page.evaluate(f"{layout}.yaxis.title.text").startswith("log g")
    page.select_option("#view", label="sky")
    x, y = page.evaluate(f"{layout}.xaxis.range"), page.evaluate(f"{layout}.yaxis.range")
    assert x[0] > x[1] and y[0] < y[1]
    assert problems == []


def test_the_chosen_stars_are_taken_away_as_csv_and_a_figure_as_svg(browser, path, tmp_path):
    page, problems = open_page(browser, path)
    walk(page)
    page.evaluate("chemscaleReport.select(new Set([3, 5, 8]))")
    assert page.inner_text("#save-csv") == "CSV of 3 selected"
    with page.expect_download() as caught:
        page.click("#save-csv")
    caught.value.save_as(tmp_path / "stars.csv")
    with (tmp_path / "stars.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 3 and float(rows[0]["teff"]) > 3000 and float(rows[2]["feature 1"]) != 0
    page.hover("#scatter")
    with page.expect_download() as caught:
        page.locator('#scatter [data-title="Download as SVG"]').click()
    caught.value.save_as(tmp_path / "scatter.svg")
    assert "<svg" in (tmp_path / "scatter.svg").read_text()[:500]
    assert problems == []


def test_below_a_spectrum_stands_the_star_minus_its_sibling(browser, path):
    page, _ = open_page(browser, path)
    walk(page)
    data = page.evaluate("document.getElementById('spectrum').data.map(d => ({name: d.name, y: d.y, axis: d.yaxis}))")
    below = next(d for d in data if d["axis"] == "y2")
    assert below["name"] == "star \u2212 sibling"
    star, other = data[0]["y"], next(d for d in data[1:] if "observed" in d["name"] and not d["axis"])["y"]
    p = next(k for k in range(len(star)) if None not in (star[k], other[k]))
    assert below["y"][p] == pytest.approx(star[p] - other[p])


def test_the_heat_map_holds_correlations_and_a_cell_leads_to_its_points(browser, path):
    page, problems = open_page(browser, path)
    walk(page)
    z = page.evaluate("document.getElementById('heat').data[0].z")
    flat = [v for row in z for v in row if v is not None]
    assert max(map(abs, flat)) <= 1 and max(map(abs, flat)) > 0.5
    page.evaluate("document.getElementById('heat').emit('plotly_click', {points: [{pointIndex: [0, 2]}]})")
    assert page.input_value("#y-axis") == "feature 3"
    assert problems == []


def test_no_outlier_flattens_a_panel(browser, path):
    page, _ = open_page(browser, path)
    walk(page)
    low, high = page.evaluate("document.getElementById('scatter').layout.xaxis.range")
    values = page.evaluate("[...document.getElementById('scatter').data[0].x]")
    assert high - low < 3 * (max(values) - min(values))
