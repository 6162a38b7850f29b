"""The page in a real browser: it sorts, filters, shows on hover, reports no error, and runs nothing that users name."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult
from lightning_zico.results import Final
from tests.report.boards import EVIL, card, plain, searched, with_finals

selenium = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed: `pip install selenium`")
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="There is no Chromium with its driver; Debian has them: `apt-get install chromium chromium-driver`",
)

# Without them, Chromium talks to its maker's servers.
QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
# Something hides in its name as well.
CARD = ScoreCard(EVIL[1], {"zico": Score("zico", 3.0, layers={"0.weight": 1.0, EVIL[0]: 2.0})})
MARKS = ".mark-symbol path, .mark-rect.role-mark path"
SHOWN = "#vg-tooltip-element.visible"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *QUIET)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page of results that is open in the browser."""

    def __init__(self, driver: Any, results: Leaderboard | SearchResult, path: Path) -> None:
        self.driver = driver
        page = results.to_html(path, CARD) if isinstance(results, Leaderboard) else results.to_html(path)
        driver.get(page.as_uri())
        self.wait(lambda: len(self.all(".chart svg")) == len(self.all(".chart")))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait(self, condition: Any) -> Any:
        drawn_anew = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.driver, 30, ignored_exceptions=drawn_anew).until(lambda _: condition())

    @property
    def names(self) -> list[str]:
        return [cell.text for cell in self.all("#ranking tbody tr:not([hidden]) th")]

    def header(self, column: str) -> Any:
        (header,) = [cell for cell in self.all("#ranking thead th") if cell.text.split("\n")[0].strip() == column]
        return header

    def sort(self, column: str) -> str:
        self.header(column).find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        return self.header(column).get_attribute("aria-sort")

    def said_over(self, chart: Any) -> str:
        """Hover over the first mark of a figure, until it says something: it may just be drawn anew, to its width."""

        def said() -> str:
            mark = chart.find_elements(By.CSS_SELECTOR, MARKS)[0]
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
            selenium.ActionChains(self.driver).move_to_element(mark).move_by_offset(1, 0).perform()
            return self.one(SHOWN).text

        return str(self.wait(said))

    def console(self) -> list[Any]:
        return self.driver.get_log("browser")


@pytest.fixture
def page(chromium: Any, tmp_path: Path) -> Iterator[Page]:
    page = Page(chromium, with_finals(), tmp_path / "board.html")
    yield page
    assert page.console() == []


def test_columns_sort_by_keyboard_both_ways_and_what_is_missing_stays_last(page: Page) -> None:
    assert page.names == ["good", "best", "small", "no macs", "dear", "bad"]
    assert page.header("rank").get_attribute("aria-sort") == "ascending"
    assert page.sort("macs") == "ascending"
    assert page.names == ["small", "good", "best", "dear", "no macs", "bad"]
    assert page.header("rank").get_attribute("aria-sort") is None
    assert page.sort("macs") == "descending"
    assert page.names == ["dear", "best", "good", "small", "no macs", "bad"]
    page.sort("name")
    assert page.names == ["bad", "best", "dear", "good", "no macs", "small"]


def test_sorting_moves_each_row_once_and_leaves_the_focus_and_the_order_of_equals(
    chromium: Any, tmp_path: Path
) -> None:
    board = plain(*(card(f"n{idx}", -float(idx), float(idx % 3)) for idx in range(300)))
    page = Page(chromium, board, tmp_path / "long.html")
    page.sort("macs")
    by_macs = sorted((row["name"] for row in board), key=lambda name: int(name[1:]) % 3)
    assert page.names == by_macs
    focused = page.driver.switch_to.active_element
    assert focused == page.header("macs").find_element(By.TAG_NAME, "button")
    page.sort("name")
    assert page.names == [f"n{idx}" for idx in range(300)]
    assert len(page.all("#ranking tbody")) == 1
    assert page.console() == []


def test_the_filter_keeps_the_rows_with_its_text_and_says_how_many(page: Page) -> None:
    box = page.one("#filter")
    box.send_keys("DOES NOT build")
    assert page.names == ["bad"]
    assert page.one("#status").text == "1 of 6 candidates"
    page.sort("name")
    box.clear()
    box.send_keys(Keys.SPACE)
    assert len(page.names) == 6
    assert page.one("#status").text == "6 of 6 candidates"


def test_every_figure_says_on_hover_what_a_mark_is(page: Page) -> None:
    charts = page.all(".chart")
    first = ["good", "good", "good", "0.weight", "ranking"]
    assert len(charts) == len(first)
    for chart, name in zip(charts, first, strict=True):
        assert name in page.said_over(chart)
        selenium.ActionChains(page.driver).move_to_element(page.one("h1")).perform()
        page.wait(lambda: not page.all(SHOWN))


def test_a_finalist_that_failed_has_a_row_without_a_dot(page: Page) -> None:
    finals = page.all(".chart")[2]
    assert len(finals.find_elements(By.CSS_SELECTOR, ".mark-symbol path")) == 2
    names = {text.text for text in finals.find_elements(By.CSS_SELECTOR, "svg text")}
    assert names >= {"good", "best", "dear"}


def test_screen_readers_are_told_what_is_what(page: Page) -> None:
    assert page.one("#filter").accessible_name == "Show candidates with"
    assert page.one("#filter").aria_role == "searchbox"
    assert page.one("#ranking").aria_role == "table"
    assert page.one("#ranking").accessible_name.startswith("Best first")
    assert page.one("#ranking tbody th").aria_role == "rowheader"
    assert page.header("score").aria_role == "columnheader"
    assert page.header("score").find_element(By.TAG_NAME, "button").accessible_name.startswith("score")
    assert page.one("#status").aria_role == "status"
    for figure, svg in zip(page.all("figure"), page.all(".chart svg"), strict=True):
        assert svg.get_attribute("aria-label") or svg.find_element(By.CSS_SELECTOR, "[aria-label]")
        assert figure.find_element(By.TAG_NAME, "figcaption").text


def test_nothing_is_wider_than_a_phone(page: Page) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.driver.refresh()
        page.wait(lambda: len(page.all(".chart svg")) == 5)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == 390
        for svg in page.all(".chart svg")[:4]:
            assert svg.size["width"] <= 390
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_dark(page: Page, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        back = colour_of(page.one("body"), "background-color")
        assert (luminance(back) < 0.5) == (scheme == "dark")
        for selector in ("td", "thead button", "caption", ".lead", "figcaption", "dt", ".failed th", "summary"):
            assert contrast(colour_of(page.one(selector), "color"), back) >= 4.5, selector  # WCAG 2.2, 1.4.3
        for text in page.all(".chart svg text")[:20]:
            assert contrast(colour_of(text, "fill"), back) >= 4.5
        for mark in page.all(".chart .mark-symbol path"):
            assert contrast(colour_of(mark, "fill"), back) >= 3  # WCAG 2.2, 1.4.11
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def colour_of(element: Any, name: str) -> list[float]:
    text = element.value_of_css_property(name)
    return [float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def luminance(colour: list[float]) -> float:
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: list[float], b: list[float]) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_a_search_is_sorted_and_drawn_too(chromium: Any, tmp_path: Path) -> None:
    page = Page(chromium, searched(against=("latency_s",), first=EVIL[1]), tmp_path / "search.html")
    assert page.names == ["e", "c", "d", EVIL[1], "b"]
    page.sort("cost_macs")
    assert page.names == ["b", "d", EVIL[1], "e", "c"]
    history, latency, macs, _ = page.all(".chart")
    assert EVIL[1] in page.said_over(history)
    for chart in (macs, latency):
        assert "e" in page.said_over(chart)
    lines = page.all(".chart .mark-line path")
    assert len(lines) == 3
    assert all(line.get_attribute("d").count("L") or "V" in line.get_attribute("d") for line in lines)
    assert page.console() == []


def test_what_users_name_is_shown_and_never_run(chromium: Any, tmp_path: Path) -> None:
    cards = [card(name, float(idx), 1.0 + idx) for idx, name in enumerate(EVIL)]
    held = {"monitor": EVIL[1], "mode": "max", "finalists": 1, "final_epochs": 1, "halving": False}
    board = plain(*cards, card("bad", None, None, error=EVIL[0]), rank_by=EVIL[0], loss_fn=EVIL[1])
    board = board.with_finals([Final(EVIL[2], 0.5, 1)], held)
    page = Page(chromium, board, tmp_path / "evil.html")
    assert page.names == [*EVIL[::-1], "bad"]
    assert page.one("h1").text == f"Ranking by {EVIL[0]}"
    assert EVIL[0] in page.said_over(page.one(".chart"))
    assert page.all("img") == []
    assert page.driver.execute_script("return window.attacked") is None
    assert page.console() == []


@pytest.mark.parametrize(
    "board", [Leaderboard(()), plain(card("bad", None, None, error="no")), plain(card("a", 1.0, 0.0))]
)
def test_few_or_no_candidates_make_a_page_too(chromium: Any, tmp_path: Path, board: Leaderboard) -> None:
    page = Page(chromium, board, tmp_path / "board.html")
    assert page.names == [row["name"] for row in board]
    assert page.console() == []


def test_the_page_asks_the_network_for_nothing(page: Page) -> None:
    entries = page.driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in entries if not name.startswith("data:")] == []
    refused = page.driver.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => {});"
    )
    assert refused == "connect-src"
    assert page.console()  # tells of this one attempt, and nothing is left for the fixture
