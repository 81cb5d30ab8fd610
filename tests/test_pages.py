"""The report, the explorer and the page of one image in a real browser: no errors, no requests elsewhere, accessible."""

import functools
import http.server
import json
import os
import re
import shutil
import threading

import pandas as pd
import pytest

from nadpipe.cli import main
from nadpipe.stages.make_report import make_report
from nadpipe.store.checksums import UNSEALED, seal
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet, write_parquet

REQUIRED = os.environ.get("NADPIPE_BROWSER") == "1"  # set by .ci/run: a missing browser is then a failure
SIZES = [(360, "dark"), (360, "light"), (1440, "dark"), (1440, "light")]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None and not REQUIRED:
        pytest.skip("browser: chromium is not installed (Debian package chromium)")
    assert program is not None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def results(checkout):
    return checkout.folder / "results"


@pytest.fixture(scope="module")
def address(results):
    """Serve the explorer with a static file server and return its address."""
    handler = functools.partial(Quiet, directory=str(results / "explorer"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser, request):
    """Open a page of one size and theme. It records its requests, errors and warnings."""
    width, theme = getattr(request, "param", (1440, "light"))
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    opened.urls, opened.problems = [], []
    opened.on("request", lambda request: opened.urls.append(request.url))
    opened.on("console", lambda message: opened.problems.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("requestfailed", lambda request: opened.problems.append(f"failed: {request.url}"))
    yield opened
    opened.close()
    assert opened.problems == []


def show(page, address, path):
    """Go to a page of the explorer and wait for its content."""
    page.goto(f"{address}index.html{path}")
    page.wait_for_function("path => document.getElementById('main').dataset.shown === path", arg=path)


def assert_accessible_and_within_its_width(page):
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page).response["violations"]
    assert [(rule["id"], [node["html"][:120] for node in rule["nodes"][:3]]) for rule in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("page", SIZES, indirect=True, ids=str)
def test_the_report_is_self_contained(page, results):
    page.goto((results / "report.html").as_uri())
    page.wait_for_selector("body[data-drawn]")
    assert [url for url in page.urls if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in page.urls if url.startswith("file:")]) == 1
    assert page.locator(".chart svg").count() == page.locator(".chart").count() == 7
    for picture in page.locator("img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
    assert_accessible_and_within_its_width(page)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_the_report_holds_the_tables_numbers(page, results):
    page.goto((results / "report.html").as_uri())
    scores = pd.read_csv(results / "segmentation.csv")
    text = page.inner_text("#segmentation")
    assert all(f"{100 * value:.1f}%" in text for value in scores["miou"])
    largest = pd.read_parquet(results / "pairs.parquet").nsmallest(10, "contribution_rank")
    assert all(f"{row.head}/{row.neuron}" in page.inner_text("#units") for row in largest.itertuples())
    assert "Warning" not in page.inner_text("#run")
    assert "No images were skipped." in page.inner_text("#skipped")


def test_skipped_images_and_warnings_are_in_the_report(page, results, tmp_path, monkeypatch):
    monkeypatch.chdir(results.parent)
    shutil.copytree(results, tmp_path / "results", ignore=shutil.ignore_patterns("demo", "explorer", "*.zarr"))
    path = tmp_path / "results/artifacts/discovery/images.parquet"
    manifest = read_parquet(path, IMAGES)
    manifest.loc[len(manifest) - 1, ["image_id", "problem"]] = -1, "x.jpg: not a readable image (<b>cut</b>)"
    write_parquet(path, IMAGES, manifest, Stamp(), sources=True)
    path = tmp_path / "results/provenance.json"
    provenance = json.loads(path.read_text())
    changed = {"warnings": ["directions.top_images: too many; use fewer"], "checksum": UNSEALED}
    path.write_text(json.dumps(provenance | changed))
    seal(path)
    head_means = tuple((results / "artifacts/discovery/head_means").iterdir())
    make_report(tmp_path / "results", head_means, tmp_path / "report.html", segmented=("segmentation",))
    page.goto((tmp_path / "report.html").as_uri())
    text = page.inner_text("#skipped")
    assert "Images that could not be used: 1" in text
    assert "x.jpg: not a readable image (<b>cut</b>)" in text
    assert "Warning: directions.top_images: too many; use fewer." in page.inner_text("#run")


PAPER = 718  # pixels between the margins of A4

MARKS = """[...document.querySelectorAll(".chart svg .role-mark path, .chart svg .role-mark line, .chart svg .role-axis text")]
  .map((mark) => {
    const style = getComputedStyle(mark), ink = style.stroke === "none" ? "fill" : "stroke";
    return [mark.closest("figure").innerText.slice(0, 40), mark.parentNode.getAttribute("class"), style[ink],
      style.opacity * style[`${ink}Opacity`]];
  })"""


def luminance(colour):
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink, opacity, background):
    """Return WCAG's contrast ratio of an ink of some opacity on its background. Colours are as in CSS: rgb(1, 2, 3)."""
    ink, background = ([int(value) / 255 for value in re.findall(r"\d+", colour)[:3]] for colour in (ink, background))
    shown = [opacity * one + (1 - opacity) * other for one, other in zip(ink, background, strict=True)]
    one, other = sorted((luminance(shown), luminance(background)))
    return (other + 0.05) / (one + 0.05)


def weakest_marks(page):
    """Return charts, kinds and contrasts of the lines, points, intervals and labels that are hard to see."""
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shown = [mark for mark in page.evaluate(MARKS) if mark[-1]]  # labels that would overlap have opacity 0
    ratios = [(*mark, contrast(ink, opacity, background)) for *mark, ink, opacity in shown]
    assert {"rule", "line", "symbol"} <= {kind.split("-")[1].split()[0] for _, kind, _ in ratios if kind.startswith("mark-")}
    return sorted({(chart, kind, round(ratio, 1)) for chart, kind, ratio in ratios if ratio < 3 and "mark-rect" not in kind})


def test_marks_of_charts_can_be_seen_in_every_theme(page, results):
    page.goto((results / "report.html").as_uri())
    page.wait_for_selector("body[data-drawn]")
    assert contrast("rgb(0, 0, 0)", 1, "rgb(20, 23, 27)") < 1.5 < 20 < contrast("rgb(0, 0, 0)", 1, "rgb(255, 255, 255)")
    assert weakest_marks(page) == []
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert weakest_marks(page) == []
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page')") == "#fff"
    assert weakest_marks(page) == []


def beyond_the_paper(page):
    """Return charts, pictures and tables that are cut off in print. A printer narrows the page without an event of resizing."""
    page.evaluate("width => { document.documentElement.style.width = `${width}px`; }", PAPER)
    wide = "[...document.querySelectorAll('svg, img, table')].filter((e) => e.getBoundingClientRect().right > width)"
    return page.evaluate(f"width => {wide}.map((e) => e.parentNode.outerHTML.slice(0, 200))", PAPER)


def test_the_report_prints_dark_on_light_and_within_the_paper(page, results):
    page.goto((results / "report.html").as_uri())
    page.wait_for_selector("body[data-drawn]")
    page.click("#theme")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    assert page.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill") == "rgb(27, 31, 36)"
    assert not page.locator("#theme").is_visible()
    assert beyond_the_paper(page) == []
    assert page.evaluate("[...document.querySelectorAll('.chart svg')].every((e) => e.getBoundingClientRect().width > 200)")


def test_every_link_of_the_report_opens_from_disk(page, results):
    report = (results / "report.html").as_uri()
    page.goto(report)
    links = page.evaluate("[...document.querySelectorAll('a[href]')].map((link) => link.href)")
    sections = [link.removeprefix(f"{report}#") for link in links if link.startswith(f"{report}#")]
    assert page.evaluate("ids => ids.filter((id) => !document.getElementById(id))", sections) == []
    others = sorted({link for link in links if not link.startswith(f"{report}#")})
    assert {re.sub(r"\d+", "0", link.partition("#")[2]) for link in others} >= {"", "/pair/0/0", "/neuron/0"}
    for link in others:
        page.goto(link)
        shown = link.partition("#")[2]
        page.wait_for_function("path => document.getElementById('main').dataset.shown === path", arg=f"#{shown or '/'}")
        assert page.inner_text("h1") != "Not found", link
        assert page.locator("table tbody tr").count() > 0


@pytest.mark.parametrize("page", SIZES, indirect=True, ids=str)
@pytest.mark.parametrize("path", ["#/", "#/pair/3/100", "#/neuron/100", "#/head/3", "#/search/fish"])
def test_every_page_of_the_explorer_is_accessible(page, address, path):
    show(page, address, path)
    assert [url for url in page.urls if not url.startswith((address, "data:"))] == []
    assert_accessible_and_within_its_width(page)


def test_a_search_finds_the_pair_and_its_page_shows_it(page, address, results):
    pairs = pd.read_parquet(results / "pairs.parquet").set_index(["head", "neuron"])
    (head, neuron), best = next(iter(pairs.sort_values("active_correlation", ascending=False).iterrows()))
    show(page, address, "#/")
    page.keyboard.press("/")
    page.keyboard.type(best["active_text"])
    page.keyboard.press("Enter")
    page.click(f"section:has(h2:text('Texts by correlation')) a:text-is('{head}/{neuron}')")
    page.wait_for_selector(f"h1:text-is('Pair {head}/{neuron}')")
    assert page.url.endswith(f"#/pair/{head}/{neuron}")
    assert f"{best['contribution_rank']} of {len(pairs):,}" in page.inner_text("main")
    assert page.locator("section:has(h2:text('Texts by correlation')) tbody a").first.inner_text() == best["active_text"]
    for picture in page.locator(".shot img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth === 160", arg=picture.element_handle())
    maps = (
        "[...document.querySelectorAll('.shot canvas')].map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    opacities = page.evaluate(f"{maps}.map(data => Math.max(...data.filter((_, index) => index % 4 === 3)))")
    assert max(opacities) >= 216  # the largest value of all images is opaque, and weak images look weak
    values = [abs(float(text.split()[1])) for text in page.locator(".shots figcaption").all_inner_texts()]
    assert values[0] == max(values)
    assert opacities[-1] < opacities[0]
    assert page.inner_text(".scale").split()[0] == f"-{page.inner_text('.scale').split()[-1]}"
    page.uncheck("#maps")
    assert page.locator(".shot canvas:visible").count() == 0
    assert page.locator(".scale:visible").count() == 0


def test_pages_are_reached_by_link_by_number_and_by_key(page, address):
    show(page, address, "#/pair/3/100")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:text-is('Pair 3/101')")
    page.go_back()
    page.wait_for_selector("h1:text-is('Pair 3/100')")
    for query, title in [("345", "Neuron 345"), ("2/345", "Pair 2/345"), ("head 2", "Head 2"), ("2, 344", "Pair 2/344")]:
        page.fill("#query", query)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"h1:text-is('{title}')")
    page.fill("#query", "no such text at all")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No text that names a pair contains this")


def test_a_missing_page_is_reported(page, address):
    show(page, address, "#/pair/3/100000")
    assert page.inner_text("h1") == "Not found"
    assert "100000" in page.inner_text("main")
    assert all("Failed to load resource" in problem or "100000" in problem for problem in page.problems)
    page.problems.clear()


def test_the_theme_is_kept(page, address):
    show(page, address, "#/")
    page.click("#theme")
    page.reload()
    page.wait_for_selector("h1")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("page", SIZES, indirect=True, ids=str)
def test_an_images_own_page_is_accessible(page, checkout, tmp_path, monkeypatch):
    monkeypatch.chdir(checkout.folder)
    image = next((checkout.folder / "results/demo/segmentation/images").iterdir())
    assert main(["explain", str(image), "--texts", "fish", "--output", str(tmp_path / "e.html"), "--most", "2"]) == 0
    page.goto((tmp_path / "e.html").as_uri())
    assert len([url for url in page.urls if not url.startswith("data:")]) == 1
    assert_accessible_and_within_its_width(page)
