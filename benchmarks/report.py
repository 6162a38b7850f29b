"""Size and speed of the page of a leaderboard in headless Chromium, on a desktop's and on a phone's width."""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver

from lightning_zico import Leaderboard, Score, ScoreCard

PROXIES = ("zico", "naswot", "synflow", "snip", "grad_norm", "zen", "expressivity", "trainability", "progressivity")
BASELINES = ("params", "macs", "num_layers", "sum_log_numel")
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")

# Runs before the page's own scripts: when tasks that block the page for 50 ms or more have ended.
WATCH = """
window.lastTask = 0;
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) window.lastTask = Math.max(window.lastTask, task.startTime + task.duration);
}).observe({ type: "longtask", buffered: true });
"""
# Until all figures are drawn and nothing has blocked the page for a second.
SETTLE = """
const done = arguments[0];
const isDrawn = () => [...document.querySelectorAll(".chart")].every((chart) => chart.querySelector("svg"));
const timer = setInterval(() => {
  if (!isDrawn() || performance.now() - window.lastTask < 1000) return;
  clearInterval(timer);
  const [entry] = performance.getEntriesByType("navigation");
  done([entry.domContentLoadedEventEnd, Math.max(window.lastTask, entry.domContentLoadedEventEnd)]);
}, 50);
"""
# From an action until the page has painted its effect.
PAINTED = """
const [action, argument, done] = arguments;
const start = performance.now();
if (action === "filter") {
  const filter = document.querySelector("#filter");
  filter.value = argument;
  filter.dispatchEvent(new Event("input", { bubbles: true }));
} else {
  const headers = [...document.querySelectorAll("#ranking thead button")];
  headers.find((button) => button.textContent === argument).click();
}
requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
"""


def make_leaderboard(num_rows: int) -> Leaderboard:
    """Make up a ranking in which one of fifty candidates failed."""
    chance = random.Random(0)
    names = [
        f"width={chance.choice((16, 32, 64, 128))},depth={chance.randrange(40)},id={idx}" for idx in range(num_rows)
    ]
    columns = (*PROXIES, *BASELINES)
    cards = []
    for idx, name in enumerate(names):
        if idx % 50 == 7:
            cards.append(ScoreCard.failed(name, columns, "RuntimeError: mat1 and mat2 shapes cannot be multiplied"))
            continue
        scores = {proxy: Score(proxy, chance.lognormvariate(3.0, 1.0)) for proxy in PROXIES}
        scores |= {baseline: Score(baseline, float(chance.randrange(10**4, 10**9))) for baseline in BASELINES}
        cards.append(ScoreCard(name, scores, seconds=chance.random()))
    return Leaderboard.of(cards, rank_by="zico", columns=columns)


@contextmanager
def chromium(width: int, height: int) -> Iterator[Any]:
    """Yield a driver of a browser with a window of this size."""
    with tempfile.TemporaryDirectory() as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            driver.set_script_timeout(120)
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
            yield driver
        finally:
            driver.quit()


def measure(driver: Any, page: Path, num_loads: int) -> tuple[float, ...]:
    """Return medians: seconds until the table works and until nothing blocks, ms to filter and to sort; the height."""
    loads: list[Sequence[float]] = []
    filtering: list[float] = []
    sorting: list[float] = []
    for _ in range(num_loads):
        driver.get(page.as_uri())
        loads.append(driver.execute_async_script(SETTLE))
        filtering += [driver.execute_async_script(PAINTED, "filter", text) for text in ("w", "width=64", "id=7", "")]
        sorting += [driver.execute_async_script(PAINTED, "sort", column) for column in ("macs", "name", "rank")]
    works, quiet = (statistics.median(seconds) / 1000 for seconds in zip(*loads, strict=True))
    height = driver.execute_script("return document.documentElement.scrollHeight")
    return works, quiet, statistics.median(filtering), statistics.median(sorting), height


def main() -> None:
    """Print a line for each number of rows and each screen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[12, 2000, 5000])
    parser.add_argument("--loads", type=int, default=3)
    arguments = parser.parse_args()
    print("|  rows | MB  | made in s | screen  | table works, s | quiet, s | filter, ms | sort, ms | height, px |")
    print("|-------|-----|-----------|---------|----------------|----------|------------|----------|------------|")
    with tempfile.TemporaryDirectory() as folder:
        make_leaderboard(2).to_html()  # reads Vega's libraries, once in a process
        for num_rows in arguments.rows:
            leaderboard = make_leaderboard(num_rows)
            start = time.perf_counter()
            page = leaderboard.to_html(Path(folder, "page.html"))
            seconds = time.perf_counter() - start
            megabytes = page.stat().st_size / 1e6
            for screen, size in SCREENS.items():
                with chromium(*size) as driver:
                    works, quiet, filtering, sorting, height = measure(driver, page, arguments.loads)
                print(
                    f"| {num_rows:5} | {megabytes:.1f} | {seconds:9.1f} | {screen:7} | {works:14.2f} | {quiet:8.2f} | "
                    f"{filtering:10.0f} | {sorting:8.0f} | {height:10,} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
