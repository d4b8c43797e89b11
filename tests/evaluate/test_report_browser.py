"""report.html in a real Chromium: no errors, fits a phone, follows the dark scheme, trees open by mouse and keyboard."""

import dataclasses
import re
import shutil

import pytest

from itool.evaluate.explorer import build_explorer
from itool.evaluate.report import build_report
from itool.evaluate.report_html import render_html
from tests.evaluate.fake_run import fake_inputs

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with chromedriver on PATH"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A driver that shows the report of the synthetic run."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    folder = tmp_path_factory.mktemp("browser")
    inputs = fake_inputs()
    (folder / "report.html").write_text(render_html(build_report(inputs), build_explorer(inputs)), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.report_url = (folder / "report.html").as_uri()
    try:
        yield driver
    finally:
        driver.quit()


def show(driver, width=1200, dark=False):
    metrics = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get(driver.report_url)
    assert driver.execute_script("return document.documentElement.dataset.ready") == "yes"


def rows(driver):
    return driver.find_elements("css selector", ".treegrid .node")


def brightness(driver):
    colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_it_draws_every_section_without_an_error(page):
    show(page)
    assert page.find_element("id", "run-name").text == "demo"
    for section in ("accuracy", "training", "perplexity", "pairs"):
        charts = page.execute_async_script(
            "const [id, done] = arguments; requestAnimationFrame(() => requestAnimationFrame(() =>"
            " done([...document.querySelectorAll(`#${id} figure`)].map((f) => f.querySelectorAll('svg path, svg rect').length))));",
            section,
        )
        assert charts, section
        assert all(marks > 0 for marks in charts), section
    assert "Iteration 3" in page.find_element("id", "trees").text
    assert page.get_log("browser") == []


def test_text_of_the_data_set_runs_no_script(page):
    show(page)
    assert page.execute_script("return window.broken") is None
    assert "<img src=x" in page.find_element("id", "tree-view").text


def test_nodes_open_on_click_and_by_keyboard(page):
    show(page)
    page.find_element("id", "collapse-all").click()
    assert len(rows(page)) == 1
    rows(page)[0].click()
    assert len(rows(page)) == 2
    assert rows(page)[0].get_attribute("aria-expanded") == "true"
    page.switch_to.active_element.send_keys("\ue015")  # arrow down
    page.switch_to.active_element.send_keys("\ue014")  # arrow right
    assert len(rows(page)) == 4
    page.find_element("id", "expand-all").click()
    assert len(rows(page)) == 7
    rows(page)[3].click()
    assert page.find_element("css selector", "#tree-state pre").text.startswith("[weather_forecast(")


def test_a_pair_is_marked_in_its_tree(page):
    show(page)
    page.find_element("css selector", ".pair-list button").click()
    marked = {row.get_attribute("class"): row.text for row in page.find_elements("css selector", ".node.now")}
    assert set(marked) == {"node chosen now", "node rejected now"}
    assert "Q" in page.find_element("css selector", ".treegrid .head").text


def test_trees_are_chosen_by_iteration_reason_and_words(page):
    show(page)
    page.execute_script("const s = document.getElementById('tree-iteration'); s.value = '0'; s.dispatchEvent(new Event('change'));")
    assert "All 48 trees of this iteration are in this page" in page.find_element("id", "trees").text
    page.execute_script(
        "const s = document.getElementById('tree-filter'); s.value = 'stop:hopeless'; s.dispatchEvent(new Event('change'));"
    )
    choices = page.find_elements("css selector", "#tree-choice option")
    assert choices
    assert all("hopeless" in choice.text for choice in choices)
    page.find_element("id", "tree-query").send_keys("no such words")
    assert "No tree matches" in page.find_element("id", "tree-view").text


def test_a_full_page_says_where_the_rest_is(page, tmp_path):
    inputs = fake_inputs()
    (tmp_path / "full.html").write_text(render_html(build_report(inputs), build_explorer(inputs, limit_bytes=20_000)), encoding="utf-8")
    page.get((tmp_path / "full.html").as_uri())
    assert re.search(r"\d+ more did not fit and are in trees.jsonl of i3/generate", page.find_element("id", "trees").text)


def test_a_run_without_preference_pairs_shows_what_its_search_found(page, tmp_path):
    inputs = dataclasses.replace(fake_inputs(method="rejection_sampling"), pairs={})
    (tmp_path / "sampled.html").write_text(render_html(build_report(inputs), build_explorer(inputs)), encoding="utf-8")
    page.get((tmp_path / "sampled.html").as_uri())
    section = page.find_element("id", "pairs")
    cells = [[cell.text for cell in row.find_elements("css selector", "td")] for row in section.find_elements("css selector", "tbody tr")]
    assert [(trees, of_pairs, updates) for trees, _, *of_pairs, _, updates in cells] == [(n, ["–"] * 5, "40") for n in ("48", "44", "40")]
    assert "This method makes no preference pairs." in section.text
    assert page.get_log("browser") == []


def test_a_phone_needs_no_sideways_scrolling(page):
    show(page, width=390)
    assert page.execute_script("return document.documentElement.scrollWidth") == 390
    page.find_element("id", "expand-all").click()
    page.find_element("css selector", "#configuration summary").click()
    assert page.execute_script("return document.documentElement.scrollWidth") == 390


def test_the_dark_scheme_applies(page):
    show(page)
    assert brightness(page) > 700
    show(page, dark=True)
    assert brightness(page) < 150
