"""The page in a real browser: it draws, answers clicks and keys, and hostile names do nothing."""

from __future__ import annotations

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
    for chart in ("chart-rates", "chart-clusters", "scatter", "scatter-labels", "spectrum", "chart-spectra"):
        assert page.locator(f"#{chart} .main-svg").count() > 0, chart
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


def test_page_of_latents(browser, tmp_path):
    run = make_latents_run(tmp_path, toy_survey(n_field=120, n_clusters=3, n_pixels=40))
    page, problems = open_page(browser, build_report(run))
    walk(page)
    assert page.locator("#siblings tbody tr").count() == 11
    assert page.locator("#spectrum .main-svg").count() > 0
    assert problems == []


def test_table_sorts(browser, path):
    page, _ = open_page(browser, path)
    page.locator("#clusters th button").nth(2).click()
    values = [float(t) for t in page.locator("#clusters tbody td:nth-child(3)").all_inner_texts()]
    assert values == sorted(values)
