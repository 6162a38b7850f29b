"""What a command prints and writes. Results go to standard output, messages to standard error."""

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lightning.pytorch import Trainer
from rich import markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_zico.cli.messages import say
from lightning_zico.cli.program import NO_READER, is_gone
from lightning_zico.proxies import Proxy
from lightning_zico.ranking import Recipe, get_recipe
from lightning_zico.results import Leaderboard, SearchResult, leaderboard_table
from lightning_zico.selection.selector import ZeroShotSelector
from lightning_zico.texts import count, plural, printable
from lightning_zico.zoo import Zoo

_WIDEST = 1000  # characters of a line in a file


def make_folder(output: str) -> None:
    """Make the folder for results before anything is computed.

    Raises:
        ValueError: If it cannot be made or written to.
    """
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(
            f"Invalid --output={output}: it cannot be written to: {error.strerror}. Pass an existing or a new folder."
        ) from error


def write_ranking(selector: ZeroShotSelector, offered: Any, folder: Path) -> None:
    """Write a ranking, complete or not, if there is one."""
    leaderboard: Leaderboard | None = getattr(selector, "leaderboard_", None)
    if leaderboard is None:
        return
    write_result(leaderboard, folder / "leaderboard", cards=selector.cards_)
    if isinstance(offered, Zoo) and not leaderboard.provenance["broke_off"]:
        num_left_out = len(offered.names) - len(leaderboard)
        if num_left_out:
            are = plural(num_left_out, "was", "were")
            models = count(num_left_out, "model")
            say(f"{models} with more than {offered.max_params:,.0f} parameters {are} left out.")


def print_ranking(selector: ZeroShotSelector) -> None:
    """Print a ranking, complete or not, if there is one."""
    leaderboard: Leaderboard | None = getattr(selector, "leaderboard_", None)
    if leaderboard is not None:
        print_result(leaderboard_table(leaderboard))


def write_winner(trainer: Trainer, leaderboard: Leaderboard, folder: Path) -> None:
    """Save the winner as far as it was trained, and print where."""
    trainer.save_checkpoint(folder / "winner.ckpt")
    say(f"Written: {folder / 'winner.ckpt'} ({leaderboard.best} after {count(trainer.current_epoch, 'epoch')}).")


def write_result(results: Leaderboard | SearchResult, path: Path, **page: Any) -> None:
    """Write results in each format, and print where; `page` has options of `to_html`."""
    results.to_json(path.with_suffix(".json"))
    results.to_csv(path.with_suffix(".csv"))
    try:
        results.to_html(path.with_suffix(".html"), **page)
    except ModuleNotFoundError as error:
        say(f"Written: {path}.json, .csv. The page could not be written: {error}")
    else:
        say(f"Written: {path}.json, .csv, .html")


def first_sentence(proxy: Proxy) -> str:
    """Return the first sentence of a proxy's docstring as plain text."""
    text = " ".join((type(proxy).__doc__ or "").split("\n\n")[0].split())
    return re.sub(r",? ?:math:`[^`]*`", "", text).replace("`", "")


def recipe_name(recipe: Recipe) -> str:
    """Return the name of a recipe, marked if it is the default."""
    return f"{recipe.name} (default)" if recipe == get_recipe("default") else recipe.name


def evidence_of(recipe: Recipe) -> str:
    """Return the published evidence for a recipe in words."""
    taus = ", ".join(f"{name} {tau:.2f}" for name, tau in recipe.evidence.taus.items())
    return f"{taus}. {recipe.evidence.remark}" if taus else recipe.evidence.remark


def plain_table(title: str, columns: Mapping[str, Any], rows: Iterable[tuple[str, ...]]) -> Table:
    """Return a table without borders; columns map names to how they are justified."""
    shown = markup.escape(printable(title))
    table = Table(title=shown, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for idx, (name, justify) in enumerate(columns.items()):
        table.add_column(name, justify=justify, no_wrap=idx == 0)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def print_result(shown: Table) -> None:
    """Print a table; in a file or a pipe, a table takes its full width.

    Raises:
        SystemExit: If the reader has closed the pipe.
    """
    console = Console()
    try:
        if not console.is_terminal:
            console.width = max(console.width, Console(width=_WIDEST).measure(shown).maximum)
        console.print(shown)
    except (BrokenPipeError, SystemExit):  # rich turns it into a SystemExit, from 13.8 on
        raise SystemExit(NO_READER) from None
    except OSError as error:
        if not is_gone(error):
            raise


@contextmanager
def logged_on_stderr() -> Iterator[None]:
    """Print what the package logs on standard error while the body runs."""
    logger, handler = logging.getLogger("lightning_zico"), logging.StreamHandler(sys.stderr)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
