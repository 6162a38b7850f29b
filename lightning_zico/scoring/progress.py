"""Progress of a ranking or a search, on a terminal."""

from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn


def is_interactive(enabled: bool) -> bool:
    """Whether to show anything: only if enabled, on a terminal, and on the first rank."""
    return enabled and getattr(rank_zero_only, "rank", 0) in (0, None) and get_console().is_terminal


def progress_bar(what: str, *more: ProgressColumn, is_shown: bool) -> Progress:
    """Create a bar that disappears when it is done.

    Args:
        what: Label before the bar, such as "Ranking".
        more: Columns between the time and the task's description.
        is_shown: Whether to show the bar.
    """
    # A candidate's name is text, not rich's markup.
    last = TextColumn("{task.description}", markup=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *more, last)
    return Progress(
        *columns,
        console=get_console(),
        transient=True,
        disable=not is_shown,
        speed_estimate_period=7200,  # estimate from the last hours, since a candidate may take minutes
    )
