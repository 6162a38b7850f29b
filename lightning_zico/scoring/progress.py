"""How far a ranking or a search is, on a terminal."""

from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn


def is_interactive(enabled: bool) -> bool:
    """Tell whether to show anything: if asked to, on a terminal, and by the first of several ranks."""
    return enabled and getattr(rank_zero_only, "rank", 0) in (0, None) and get_console().is_terminal


def progress_bar(what: str, *more: ProgressColumn, is_shown: bool) -> Progress:
    """Make a bar that goes when it is done.

    Args:
        what: Is going on, before the bar.
        more: Columns between the time and the task's description.
        is_shown: Whether there is to be anything to see.
    """
    # What a candidate is called is text, not rich's markup.
    last = TextColumn("{task.description}", markup=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *more, last)
    return Progress(
        *columns,
        console=get_console(),
        transient=True,
        disable=not is_shown,
        speed_estimate_period=7200,  # the last hours tell what is left, since a candidate may take minutes
    )
