"""The page in a real browser: it sorts, filters, shows on hover, reports no error, and runs nothing that users name."""

import csv
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult
from lightning_zico.results import Final
from tests.report.boards import EVIL, card, plain, searched, with_finals
from tests.report.test_table import ODD_NAMES

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
CARDS = {
    "good": ScoreCard(
        "good",
        {
            "zico": Score("zico", 5.0, layers={"fc": -2.0, EVIL[0]: 7.0}, by_repeat=(4.0, 6.0)),
            "snip": Score("snip", None, EVIL[1]),
        },
        hyperparameters={"width": 64},
    ),
    "best": ScoreCard("best", {"zico": Score("zico", 7.0, layers={"fc": 7.0})}, hyperparameters={"width": 16}),
    "bad": ScoreCard.failed("bad", ["zico"], "no", traceback=f"Traceback ...\n  {EVIL[0]}"),
}
MARKS = ".mark-symbol path, .mark-rect.role-mark path"
SHOWN = "#vg-tooltip-element.visible"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *QUIET)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Any]:
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page of results that is open in the browser."""

    def __init__(self, driver: Any, results: Leaderboard | SearchResult, path: Path) -> None:
        self.driver = driver
        page = results.to_html(path, CARD, CARDS) if isinstance(results, Leaderboard) else results.to_html(path)
        driver.get(page.as_uri())
        self.wait(lambda: len(self.all(".chart svg")) == len(self.all(".chart")))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Return what is shown in elements, in one call of the browser."""
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText.trim())"
        return list(self.driver.execute_script(script, selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait(self, condition: Any) -> Any:
        drawn_anew = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.driver, 30, ignored_exceptions=drawn_anew).until(lambda _: condition())

    @property
    def names(self) -> list[str]:
        return self.texts("#ranking tbody th")

    @property
    def failed(self) -> list[str]:
        return self.texts("#failures dt")

    def header(self, column: str) -> Any:
        (header,) = [cell for cell in self.all("#ranking thead th") if cell.text.split("\n")[0].strip() == column]
        return header

    def sort(self, column: str) -> str:
        self.header(column).find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        return self.header(column).get_attribute("aria-sort")

    def open(self, name: str) -> Any:
        """Open the details of a candidate with the keyboard."""
        (button,) = [button for button in self.all(".open") if button.text == name]
        button.send_keys(Keys.ENTER)
        return button

    def tick(self, name: str) -> None:
        (box,) = [box for box in self.all("#ranking tbody input") if box.accessible_name == f"Compare {name}"]
        box.send_keys(Keys.SPACE)

    def details(self) -> dict[str, list[str]]:
        """Return the cells of the open dialog by the text before them."""
        lines = [row.find_elements(By.CSS_SELECTOR, "th, td") for row in self.all("#detail tbody tr")]
        return {head.text: [cell.text for cell in cells] for head, *cells in lines}

    def said_over(self, chart: Any) -> str:
        """Hover over the first mark of a figure, until it says something: it may just be drawn anew, to its width."""

        def said() -> str:
            mark = chart.find_elements(By.CSS_SELECTOR, MARKS)[0]
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
            selenium.ActionChains(self.driver).move_to_element(mark).move_by_offset(1, 0).perform()
            return self.one(SHOWN).text

        return str(self.wait(said))

    def allow_copies(self) -> None:
        permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        self.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)

    def console(self) -> list[Any]:
        return self.driver.get_log("browser")


@pytest.fixture
def page(chromium: Any, tmp_path: Path) -> Iterator[Page]:
    page = Page(chromium, with_finals(), tmp_path / "board.html")
    yield page
    assert page.console() == []


def test_columns_sort_by_keyboard_the_best_first_and_what_is_missing_stays_last(page: Page) -> None:
    assert page.names == ["good", "best", "small", "no macs"]
    assert page.failed == ["dear", "bad"]
    assert page.header("rank").get_attribute("aria-sort") == "ascending"
    assert page.sort("macs") == "ascending"
    assert page.names == ["small", "good", "best", "no macs"]
    assert page.header("rank").get_attribute("aria-sort") is None
    assert page.one("#status").text.endswith("Sorted by macs, lowest first.")
    assert page.sort("macs") == "descending"
    assert page.names == ["best", "good", "small", "no macs"]
    assert page.one("#status").text.endswith("Sorted by macs, highest first.")
    assert page.sort("zico") == "descending"
    assert page.names == ["best", "good", "no macs", "small"]
    assert page.sort("name") == "ascending"
    assert page.names == ["best", "good", "no macs", "small"]


def test_rows_come_a_hundred_at_a_time_and_sorting_keeps_the_focus_and_the_order_of_equals(
    chromium: Any, tmp_path: Path
) -> None:
    cards = [card(f"n{idx}", -float(idx), float(idx % 3)) for idx in range(250)]
    cards += [card(f"bad{idx}", None, None, error="no") for idx in range(130)]
    page = Page(chromium, plain(*cards), tmp_path / "long.html")
    page.sort("macs")
    by_macs = [f"n{idx}" for rest in range(3) for idx in range(250) if idx % 3 == rest]
    assert page.names == by_macs[:100]
    focused = page.driver.switch_to.active_element
    assert focused == page.header("macs").find_element(By.TAG_NAME, "button")
    more = page.one("#more")
    assert more.text == "Show 100 more of 150"
    more.send_keys(Keys.ENTER)
    assert page.names == by_macs[:200]
    more.send_keys(Keys.ENTER)
    assert page.names == by_macs
    assert not more.is_displayed()
    assert page.driver.switch_to.active_element == page.one("#candidates ~ .scroll")
    assert page.failed == [f"bad{idx}" for idx in range(20)]
    page.one("#more-failures").send_keys(Keys.ENTER)
    assert len(page.failed) == 120
    page.one("#filter").send_keys("bad129")
    assert (page.names, page.failed) == ([], ["bad129"])
    assert page.console() == []


def test_the_filter_keeps_the_rows_with_its_text_and_says_how_many(page: Page) -> None:
    box = page.one("#filter")
    box.send_keys("DOES NOT build")
    assert (page.names, page.failed) == ([], ["bad"])
    assert page.one("#status").text == "0 of 4 candidates, 1 of 2 failed. Sorted by rank, lowest first."
    page.sort("name")
    box.clear()
    box.send_keys(Keys.SPACE)
    assert len(page.names) == 4
    assert page.one("#status").text == "4 of 4 candidates, 2 of 2 failed. Sorted by name, A to Z."


def test_the_drawn_table_has_the_same_texts_as_the_one_without_scripts(chromium: Any, tmp_path: Path) -> None:
    values = [0.0, 1.5, -2.25, 1234.56, 99999.6, 123456.7, 1e15, 2.5e-7, -1e-4, 0.00098765432, 12345678.0, 1e21]
    board = plain(*(card(f"n{idx}", value, value) for idx, value in enumerate(values)))
    text = board.to_html()
    table = text[text.index('<table id="ranking">') :]
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    expected = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", body)
    page = Page(chromium, board, tmp_path / "board.html")
    assert [cell.text for cell in page.all("#ranking tbody > tr > *")] == expected


def test_a_name_opens_everything_about_the_candidate_and_the_focus_returns(page: Page) -> None:
    button = page.open("good")
    dialog = page.one("#detail")
    assert (dialog.aria_role, dialog.accessible_name) == ("dialog", "good")
    details = page.details()
    assert details["width"] == ["64"]
    assert details["final"] == ["0.25"]
    assert details["zico"] == ["4, 6"]  # the last one: the scores of the repeats
    assert details["snip"] == [EVIL[1]]
    assert (details["fc"], details[EVIL[0]]) == (["-2"], ["7"])
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert page.driver.switch_to.active_element == button


def test_a_failed_candidate_has_its_reason_and_its_traceback(page: Page) -> None:
    page.open("bad")
    assert page.one("#detail .reason").text == "does not build: <b>no</b>"
    assert page.one("#detail pre").text == CARDS["bad"].traceback
    page.one("#close").send_keys(Keys.ENTER)
    assert not page.one("#detail").is_displayed()


@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_page_says_that_details_end_only_if_it_has_any(chromium: Any, tmp_path: Path, is_repeated: bool) -> None:
    values = (1.0, 2.0) if is_repeated else ()
    names = [f"n{idx}" for idx in range(101)]
    cards = {name: ScoreCard(name, {"zico": Score("zico", 1.0, by_repeat=values)}) for name in names}
    board = Leaderboard.of(list(cards.values()), rank_by="zico", columns=["zico"])
    chromium.get(board.to_html(tmp_path / "board.html", cards=cards).as_uri())
    chromium.find_element(By.ID, "filter").send_keys("n100")
    chromium.find_element(By.CLASS_NAME, "open").send_keys(Keys.ENTER)
    hints = [hint.text for hint in chromium.find_elements(By.CSS_SELECTOR, "#detail .hint")]
    said = "Only the first 100 candidates can have repeats, layers and tracebacks on this page."
    assert hints == [said] * is_repeated


def test_a_page_without_score_cards_says_what_its_details_lack(chromium: Any, tmp_path: Path) -> None:
    board = plain(card("good", 1.0, 2.0), card("bad", None, None, error="no"))
    chromium.get(Leaderboard.from_dict(board.to_dict()).to_html(tmp_path / "board.html").as_uri())
    for name in ("good", "bad"):
        (button,) = [each for each in chromium.find_elements(By.CLASS_NAME, "open") if each.text == name]
        button.send_keys(Keys.ENTER)
        hints = [hint.text for hint in chromium.find_elements(By.CSS_SELECTOR, "#detail .hint")]
        assert hints == ["This page was made without score cards, so it has no repeats, layers and tracebacks."]
        chromium.find_element(By.ID, "close").send_keys(Keys.ENTER)


def test_two_candidates_can_be_compared(page: Page) -> None:
    compare = page.one("#compare")
    for name, label in (("small", "1 more"), ("good", "2 candidates"), ("best", "2 candidates")):
        page.tick(name)
        assert label in compare.text
    compare.send_keys(Keys.ENTER)
    assert page.one("#detail").accessible_name == "good and best"  # the first two ticked of three
    details = page.details()
    assert details["score"] == ["5", "7", "2"]
    assert details["width"] == ["64", "16", "-48"]
    assert details["fc"] == ["-2", "7", "9"]
    assert details[EVIL[0]] == ["7", "", ""]
    assert details["macs"] == ["2,000", "8,000", "6,000"]


def test_columns_can_be_hidden(page: Page) -> None:
    page.one("details.controls summary").click()
    (box,) = [box for box in page.all("#columns input") if box.accessible_name == "macs"]
    box.send_keys(Keys.SPACE)
    shown = [cell.text.strip() for cell in page.all("#ranking thead th") if cell.is_displayed()]
    assert "macs" not in shown
    for row in page.all("#ranking tbody tr"):
        assert len(row.find_elements(By.CSS_SELECTOR, "td, th")) == len(shown)
    box.send_keys(Keys.SPACE)
    assert page.header("macs").is_displayed()


def test_the_download_is_what_to_csv_writes(chromium: Any, tmp_path: Path, downloads: Path) -> None:
    board = plain(card("=1+1", 1.5, 2.0), card('a "b", c', 1 / 3, None), card("bad", None, None, error="one\ntwo"))
    page = Page(chromium, board, tmp_path / "board.html")
    page.one("#csv").click()
    file = downloads / "ranking.csv"
    page.wait(file.exists)
    expected = list(csv.reader(io.StringIO(board.to_csv())))
    found = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
    columns = [column for column in expected[0] if column != "missing"]
    assert sorted(found[0]) == sorted(columns)
    for line, downloaded_line in zip(expected[1:], found[1:], strict=True):
        told = dict(zip(expected[0], line, strict=True))
        downloaded = dict(zip(found[0], downloaded_line, strict=True))
        for column in columns:
            assert told[column] == downloaded[column] or float(told[column]) == float(downloaded[column])
    assert page.one("#done").text == "Downloaded 3 candidates."
    assert page.console() == []


def test_the_copy_is_a_table_in_markdown(page: Page) -> None:
    page.allow_copies()
    page.one("#markdown").click()
    page.wait(lambda: page.one("#done").text == "Copied 4 candidates.")
    text = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    lines = text.split("\n")
    assert len(lines) == 6
    assert lines[0].startswith("| rank | name | score |")
    assert lines[1].startswith("| ---: | --- | ---: |")
    assert lines[2].startswith("| 1 | good | 5 | 0.25 |")


def test_the_copy_has_names_as_to_markdown_writes_them(chromium: Any, tmp_path: Path) -> None:
    board = plain(*(card(name, -float(idx), 1.0) for idx, name in enumerate(ODD_NAMES)))
    page = Page(chromium, board, tmp_path / "board.html")
    page.allow_copies()
    page.one("#markdown").click()
    page.wait(lambda: page.one("#done").text == f"Copied {len(ODD_NAMES)} candidates.")
    text = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    _, _, *copied = [line.split(" | ")[1] for line in text.splitlines()]
    _, _, *written = [line.split(" | ")[1] for line in board.to_markdown().split("\n\n")[0].splitlines()]
    assert copied == written


def test_the_header_stays_while_rows_scroll(chromium: Any, tmp_path: Path) -> None:
    page = Page(chromium, plain(*(card(f"n{idx}", -float(idx), 1.0) for idx in range(100))), tmp_path / "long.html")
    tops = page.driver.execute_script(
        "const region = document.querySelector('#ranking').parentElement; region.scrollTop = 2000;"
        "const header = region.querySelector('th');"
        "return [region.scrollTop, header.getBoundingClientRect().top - region.getBoundingClientRect().top];"
    )
    assert tops[0] == 2000
    assert tops[1] <= 2
    assert page.driver.execute_script("return document.documentElement.scrollHeight") < 6000


def test_every_figure_says_on_hover_what_a_mark_is(page: Page) -> None:
    charts = page.all(".chart")
    first = ["good", "good", "good", "0.weight", "ranking", "no macs"]
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
    assert page.one("#filter").accessible_name == "Filter"
    assert page.one("#filter").aria_role == "searchbox"
    assert page.one("#ranking").aria_role == "table"
    assert page.one("#ranking").accessible_name == "Candidates."
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
        page.wait(lambda: len(page.all(".chart svg")) == 6)
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
        for selector in (
            "td",
            "thead button",
            "caption",
            ".lead",
            "figcaption",
            "dt",
            ".failed dd",
            "summary",
            ".open",
            "a",
        ):
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
    assert (page.names, page.failed) == (["e", "c", "d", EVIL[1]], ["b"])
    page.sort("cost_macs")
    assert page.names == ["d", EVIL[1], "e", "c"]
    history, latency, macs, _, _ = page.all(".chart")
    assert EVIL[1] in page.said_over(history)
    for chart in (macs, latency):
        assert "e" in page.said_over(chart)
    lines = page.all(".chart .mark-line path")
    assert len(lines) == 3 + 4  # and those of the profiles
    assert all(line.get_attribute("d").count("L") or "V" in line.get_attribute("d") for line in lines)
    assert page.console() == []


def test_what_users_name_is_shown_and_never_run(chromium: Any, tmp_path: Path) -> None:
    cards = [card(name, float(idx), 1.0 + idx) for idx, name in enumerate(EVIL)]
    held = {"monitor": EVIL[1], "mode": "max", "finalists": 1, "final_epochs": 1, "halving": False}
    board = plain(*cards, card("bad", None, None, error=EVIL[0]), rank_by=EVIL[0], loss_fn=EVIL[1])
    board = board.with_finals([Final(EVIL[2], 0.5, 1)], held)
    page = Page(chromium, board, tmp_path / "evil.html")
    assert (page.names, page.failed) == ([*EVIL[::-1]], ["bad"])
    page.open(EVIL[0])
    assert page.one("#detail-title").text == EVIL[0]
    page.one("#close").click()
    page.open("bad")
    assert page.one("#detail .reason").text == EVIL[0]
    page.one("#close").click()
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
    assert page.names + page.failed == [row["name"] for row in board]
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
