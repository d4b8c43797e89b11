"""report.html in a real Chromium: no errors, fits a phone, follows the dark scheme, trees open by mouse and keyboard."""

import dataclasses
import itertools
import re
import shutil
import time

import pytest

from itool.evaluate.explorer import build_explorer
from itool.evaluate.report import build_report
from itool.evaluate.report_html import render_html
from itool.records import Node
from tests.evaluate.fake_run import VALIDATION, fake_example, fake_inputs, fake_predictions

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
AFTER_FRAMES = "const f = requestAnimationFrame, done = arguments[0]; f(() => f(() => f(() => f(() => f(() => f(done))))));"
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


def show(driver, width=1200, dark=False, url=None):
    metrics = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get(url or driver.report_url)
    assert driver.execute_script("return document.documentElement.dataset.ready") == "yes"


def show_a_large_tree(driver, folder, width=1200, leaves=60):
    """A tree of two levels that is larger than the window, wholly open, with the query's row in focus."""
    inputs = fake_inputs()
    example = fake_example(1)
    node = Node(parent=None, step_ids=[], text="", prior=1.0, visits=99, value=0.5, outcome=0.0)
    texts = [f"{i}: {'long step, ' * (7 * i % 40)}" for i in range(1, leaves)]  # rows of many heights
    nodes = [node, *(node.model_copy(update={"parent": 0, "step_ids": [i], "text": text}) for i, text in enumerate(texts, 1))]
    tree = inputs.trees[3][1].model_copy(update={"example_id": example.id, "nodes": nodes})
    explorer = build_explorer(dataclasses.replace(inputs, trees={1: [tree]}, pairs={}))
    (folder / "large.html").write_text(render_html(build_report(inputs), explorer), encoding="utf-8")
    show(driver, width, url=(folder / "large.html").as_uri())
    driver.execute_script("const r = document.querySelector('.treegrid .node'); r.scrollIntoView({ block: 'center' }); r.focus();")


def show_a_long_run(driver, folder, iterations=12):
    """A phone with a report of many iterations and of six times as many held-out examples, whose intervals are shorter."""
    inputs = fake_inputs()
    updates = inputs.training[3, "dpo"]
    more = {(k, d): fake_predictions(17, "mcts_dpo", k, d, 0.01) * 6 for k in range(iterations + 1) for d in ("held_out", "validation")}
    training = {(k, "dpo"): updates for k in range(1, iterations + 1)}
    report = build_report(dataclasses.replace(inputs, predictions=more, training=training))
    (folder / "long.html").write_text(render_html(report, build_explorer(inputs)), encoding="utf-8")
    show(driver, 390, url=(folder / "long.html").as_uri())
    driver.execute_async_script(AFTER_FRAMES)
    return report


def axis(driver, figure):
    """The numbers at the grid lines of a chart, as they are written."""
    labels = driver.execute_script("return [...arguments[0].querySelectorAll('line.grid + text')].map((t) => t.textContent)", figure)
    units = {"k": 1e3, "M": 1e6, "%": 0.01}
    parts = [label.replace("−", "-").replace(",", "").split() for label in labels]
    return [float(number) * units[unit[0]] if unit else float(number) for number, *unit in parts]


def in_window(driver, element):
    """Whether all of an element is in the window, below the page's bar and with nothing on top of it."""
    return driver.execute_script(
        "const r = arguments[0].getBoundingClientRect(), y = (at) => document.elementFromPoint(r.left + 5, at);"
        " return [r.top + 2, r.bottom - 2].every((at) => arguments[0].contains(y(at)));",
        element,
    )


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
    captions = {caption.text for caption in page.find_elements("css selector", "#training figcaption")}
    assert captions >= {"Learning rate", "KL to the reference", "Log-probabilities: chosen and rejected", "NLL of chosen"}
    assert page.get_log("browser") == []


def test_grid_lines_are_named_by_their_values(page, tmp_path):
    """The lines are evenly spaced, so the numbers must be."""
    for shown in (show, lambda driver: show_a_long_run(driver, tmp_path)):
        shown(page)
        page.execute_async_script(AFTER_FRAMES)
        figures = page.find_elements("css selector", "#accuracy figure, #training figure, #perplexity figure, #pairs figure")
        assert figures
        for figure in figures:
            values = axis(page, figure)
            steps = [after - before for before, after in itertools.pairwise(values)]
            assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6), figure.text


def test_a_run_of_many_iterations_stays_readable(page, tmp_path):
    report = show_a_long_run(page, tmp_path)
    legend = page.execute_script(
        "return [...[...document.querySelectorAll('#training figure')].at(-1).querySelectorAll('.legend li')]"
        ".map((e) => [e.textContent, getComputedStyle(e.firstChild).borderTopColor]);"
    )
    names, colours = zip(*legend, strict=True)
    assert {"iteration 1", "iteration 12", f"iteration {report.best_iteration}"} <= set(names)
    assert len(set(colours)) == len(names) <= 5
    ends = page.execute_script(
        "return [...document.querySelectorAll('#accuracy figure:first-child text[text-anchor=middle]')].slice(0, -1)"
        ".map((e) => { const r = e.getBoundingClientRect(); return [r.left, r.right]; });"
    )
    assert len(ends) > 2
    assert all(left[1] < right[0] for left, right in itertools.pairwise(ends)), "names of iterations overlap"


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
    page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", rows(page)[3])
    rows(page)[3].click()
    assert page.find_element("css selector", "#tree-state pre").text.startswith("[weather_forecast(")


@pytest.mark.parametrize("width", [390, 1200])
def test_the_keyboard_stays_in_the_window_with_the_response(page, tmp_path, width):
    show_a_large_tree(page, tmp_path, width)
    end, home, down, up = "\ue010", "\ue011", "\ue015", "\ue013"
    for keys, node in ((30 * down, 30), (end, 59), (9 * up, 50), (home, 0), (down, 1)):
        for key in keys:
            page.switch_to.active_element.send_keys(key)
        page.execute_async_script(AFTER_FRAMES)
        row = page.switch_to.active_element
        assert row.get_attribute("data-node") == str(node)
        assert in_window(page, row), node
        assert node == 0 or in_window(page, page.find_element("css selector", "#tree-state pre")), node


def test_a_row_stays_where_it_is_when_it_is_clicked(page, tmp_path):
    show_a_large_tree(page, tmp_path)
    page.execute_script("document.querySelectorAll('.treegrid .node')[30].scrollIntoView({ block: 'center' })")
    page.execute_async_script(AFTER_FRAMES)
    row = rows(page)[30]
    top = "return arguments[0].getBoundingClientRect().top"
    before = page.execute_script(top, row)
    row.click()
    page.execute_async_script(AFTER_FRAMES)
    assert page.execute_script(top, page.switch_to.active_element) == pytest.approx(before, abs=1)


def test_space_on_a_step_without_children_leaves_the_page_where_it_is(page, tmp_path):
    show_a_large_tree(page, tmp_path)
    page.switch_to.active_element.send_keys("\ue015")  # arrow down
    page.execute_async_script(AFTER_FRAMES)
    before = page.execute_script("return scrollY")
    page.switch_to.active_element.send_keys(" ")
    time.sleep(0.3)  # a scroll takes a moment
    assert page.execute_script("return scrollY") == before


def test_a_key_in_the_tree_has_only_its_row_read_out(page):
    show(page)
    assert page.execute_script("return document.querySelector('.treegrid').closest('[aria-live]')") is None


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


def test_a_caption_is_read_without_scrolling_its_table(page):
    show(page, width=390)
    sizes = page.execute_script(
        "return [...document.querySelectorAll('#accuracy .scroll')].map((box) => [box.previousElementSibling, box])"
        ".map(([p, box]) => [p.textContent, box.getAttribute('aria-label'), p.getBoundingClientRect().right, box.firstChild.clientWidth]);"
    )
    assert [text.split()[0] for text, *_ in sizes] == ["Held-out", "Wrong"]
    assert all(text == label and right <= 390 < width for text, label, right, width in sizes)


def test_a_column_of_other_examples_says_how_many(page):
    show(page)
    heads = page.find_element("css selector", "#accuracy .scroll thead").find_elements("tag name", "th")
    columns = [["No call"], ["Validation", f"n = {VALIDATION}"], ["pass@1", "n = 60"], ["pass@8", "n = 60"]]
    assert [head.text.split("\n") for head in heads[5:]] == columns


def test_the_dark_scheme_applies(page):
    show(page)
    assert brightness(page) > 700
    show(page, dark=True)
    assert brightness(page) < 150
