"""A leaderboard or a search as one HTML page that needs nothing else: no network, no other file.

The figures are drawn in the browser by Vega-Lite, which is embedded in the page. A security policy in the page allows
only these scripts, by their hashes, and no connection, so that a candidate's name can never run as code.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from lightning_zico._imports import imported
from lightning_zico.report.series import MOST_NAMES, UNDEFINED, agreement, ranked_by
from lightning_zico.report.vega import Chart, charts_of, charts_of_search
from lightning_zico.results import Leaderboard, Row, ScoreCard, SearchResult

# Meanings of the columns that are not named after a proxy.
_MEANINGS = {
    "rank": "1 is best; equal scores share a rank; none if the candidate failed",
    "score": "the number that candidates are ranked by; with repeats, its mean",
    "final": "the monitored metric after training in the finals",
    "final_rank": "rank among the finalists",
    "final_epochs": "number of epochs that the candidate was trained for in the finals",
    "std_error": "standard error of the score over the repeats",
    "rank_low": "lower end of the 95 % interval of the rank",
    "rank_high": "upper end of the 95 % interval of the rank",
    "p_best": "probability of being the best by score",
    "tie": "number of the group of candidates that cannot be distinguished from the group's first",
    "num_repeats": "how often the candidate was scored",
    "controlled": "the rank after removing the influence of the baseline; higher is better",
    "error": "why the candidate failed",
    "seconds": "time to score the candidate, in seconds",
    "cost_macs": "multiply-accumulate operations for one image, at the resolution of the search",
    "cost_params": "number of parameters, computed from the arch",
    "cost_depth": "number of layers on the longest path, computed from the arch",
}
_LONG_NAME = 40  # characters; archs have hundreds
# With more rows or reasons of failures than this, the page would have many megabytes.
_MOST_ROWS = 5_000
# Nobody reads more reasons for missing numbers than this, or more than `MOST_NAMES` names for each.
_MOST_REASONS = 100
_TEXTS = ("name", "error")
_SORTED = ' aria-sort="ascending"'


def write_html(results: Leaderboard | SearchResult, path: str | Path, card: ScoreCard | None = None) -> Path:
    """Write results to a file as one page: table, figures, reasons of failures, and what the numbers depend on.

    Args:
        results: Leaderboard or search to show.
        path: Path of the file; an existing one is overwritten.
        card: Score card of one candidate of a leaderboard, such as ``selector.cards_[leaderboard.best]``: one of the
            figures then shows what its layers added to ZiCo.

    Returns:
        The path.

    Raises:
        ValueError: If the card has no layers of ZiCo.
        ModuleNotFoundError: If vl-convert-python is not installed.
    """
    path = Path(path)
    text = search_page(results) if isinstance(results, SearchResult) else leaderboard_page(results, card)
    # A name read from a file system may hold what UTF-8 cannot write.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def leaderboard_page(leaderboard: Leaderboard, card: ScoreCard | None = None) -> str:
    """Return a leaderboard as the text of an HTML page; see `write_html` for its contents and exceptions."""
    title = f"Ranking by {ranked_by(leaderboard)}"
    return _page(title, leaderboard.notes, leaderboard, charts_of(leaderboard, card))


def search_page(result: SearchResult) -> str:
    """Return a search as the text of an HTML page; see `write_html` for its contents and exceptions."""
    leaderboard = result.to_leaderboard()
    title = f"Search by {ranked_by(leaderboard)}"
    if "space" in result.provenance:
        title = f"Search of {result.provenance['space']} by {ranked_by(leaderboard)}"
    return _page(title, result.notes, leaderboard, charts_of_search(result, leaderboard))


def _page(title: str, notes: Iterable[str], leaderboard: Leaderboard, charts: list[Chart]) -> str:
    style, script, vega = _part("page.css"), _part("page.js"), _vega()
    allowed = " ".join(map(_source_of, (script, vega)))
    policy = (
        # Vega sets style attributes on the marks that it draws.
        f"default-src 'none'; script-src {allowed}; style-src-elem {_source_of(style)}; "
        "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(_lead(leaderboard))}</p>
</header>
<main>
{_listed(notes)}
<noscript><p class="hint">Without JavaScript the table is complete, but not sorted, filtered or drawn.</p></noscript>
<section aria-labelledby="candidates">
<h2 id="candidates">Candidates</h2>
{_table(leaderboard)}
</section>
{_figures(charts, leaderboard)}
{_errors(leaderboard)}
{_missing(leaderboard)}
<section aria-labelledby="provenance">
<h2 id="provenance">What the numbers depend on</h2>
{_provenance(leaderboard.provenance)}
</section>
</main>
<script type="application/json" id="charts">{_json_in_html([chart.spec for chart in charts])}</script>
<script type="module">{vega}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def _lead(leaderboard: Leaderboard) -> str:
    count, failed = len(leaderboard), len(leaderboard.errors)
    text = f"{count} candidate{'s' * (count != 1)}"
    if failed:
        text += f", {failed} failed"
    return f"{text}; the best is {leaderboard.best}" if leaderboard.best else text


def _listed(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _table(leaderboard: Leaderboard) -> str:
    columns = leaderboard.columns
    headers = "".join(
        f'<th scope="col" data-kind="{"text" if column in _TEXTS else "number"}" class="{_class_of(column)}"'
        f"{_SORTED if column == 'rank' else ''}>"
        f'<button type="button">{escape(column)}</button></th>'
        for column in columns
    )
    body = "\n".join(_row(row, columns) for row in leaderboard.rows[:_MOST_ROWS])
    count = min(len(leaderboard), _MOST_ROWS)
    long = ' class="long"' if any(len(row["name"]) > _LONG_NAME for row in leaderboard) else ""
    cut = "" if count == len(leaderboard) else f" The first {count:,} of {len(leaderboard):,} are shown."
    meanings = "".join(
        f"<dt>{column}</dt><dd>{escape(_MEANINGS[column])}</dd>" for column in columns if column in _MEANINGS
    )
    return f"""<div class="filter"><label for="filter">Show candidates with</label>
<input id="filter" type="search" autocomplete="off" spellcheck="false">
<span id="status" role="status">{count} of {count} candidates</span></div>
<div class="scroll" role="region" aria-labelledby="caption" tabindex="0">
<table id="ranking"{long}>
<caption id="caption">Best first, failed ones last. Click a column's name to sort by it.{cut}</caption>
<thead><tr>{headers}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
<details><summary>What the columns mean</summary><dl>{meanings}</dl></details>"""


def _row(row: Row, columns: Iterable[str]) -> str:
    cells = "".join(_cell(column, row[column]) for column in columns)
    return f"<tr{' class=failed' if row['rank'] is None else ''}>{cells}</tr>"


def _cell(column: str, value: Any) -> str:
    data = "" if value is None else f' data-value="{escape(str(value))}"'
    kind = f' class="{_class_of(column)}"' if column in _TEXTS else ""
    if column == "rank" and value is None:
        return "<td>-</td>"
    if column == "name":
        return f'<th scope="row"{kind}{data}>{escape(value)}</th>'
    return f"<td{kind}{data}>{escape(_shown(value))}</td>"


def _class_of(column: str) -> str:
    return "text name" if column == "name" else "text" if column in _TEXTS else "number"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:,.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _figures(charts: list[Chart], leaderboard: Leaderboard) -> str:
    if not charts:
        return ""
    figures = "\n".join(map(_figure, charts))
    return f"""<section aria-labelledby="figures">
<h2 id="figures">Figures</h2>
<div class="figures">
{figures}
</div>
<details><summary>Agreement of the proxies as a table</summary>
{_agreement_table(leaderboard)}
</details>
</section>"""


def _figure(chart: Chart) -> str:
    drawing = '<div class="chart"></div>'
    if chart.min_width:
        drawing = (
            f'<div class="wide" role="group" aria-label="{escape(chart.title)}" tabindex="0">'
            f'<div class="chart" style="min-width: {chart.min_width}px"></div></div>'
        )
    return f"<figure><h3>{escape(chart.title)}</h3><figcaption>{escape(chart.text)}</figcaption>{drawing}</figure>"


def _agreement_table(leaderboard: Leaderboard) -> str:
    names, taus = agreement(leaderboard)
    headers = "".join(f'<th scope="col" class="plain">{escape(name)}</th>' for name in ("", *names))
    rows = "\n".join(
        f'<tr><th scope="row" class="text name">{escape(name)}</th>{"".join(map(_tau_cell, row))}</tr>'
        for name, row in zip(names, taus, strict=True)
    )
    return f"""<div class="scroll" role="region" aria-labelledby="taus" tabindex="0"><table>
<caption id="taus">Kendall's tau of every two columns</caption>
<thead><tr>{headers}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _tau_cell(tau: float | None) -> str:
    return f"<td>{UNDEFINED if tau is None else f'{tau:.2f}'}</td>"


def _errors(leaderboard: Leaderboard) -> str:
    failed = leaderboard.errors
    if not failed:
        return ""
    shown = list(failed.items())[:_MOST_ROWS]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(reason)}</dd>" for name, reason in shown)
    if len(shown) < len(failed):
        items += f"<dt>And</dt><dd>{len(failed) - len(shown):,} more.</dd>"
    return f"""<section aria-labelledby="errors">
<h2 id="errors">Failed candidates</h2>
<dl>{items}</dl>
</section>"""


def _missing(leaderboard: Leaderboard) -> str:
    """Return the section on why candidates with a score have no number in other columns."""
    groups = leaderboard.provenance.get("missing", ())
    if not groups:
        return ""
    items = ""
    for group in groups[:_MOST_REASONS]:
        names = ", ".join(group["names"][:MOST_NAMES])
        if len(group["names"]) > MOST_NAMES:
            names += f" and {len(group['names']) - MOST_NAMES:,} more"
        items += f"<dt>{escape(', '.join(group['proxies']))}</dt><dd>{escape(group['reason'])} ({escape(names)})</dd>"
    if len(groups) > _MOST_REASONS:
        items += f"<dt>And</dt><dd>{len(groups) - _MOST_REASONS:,} more reasons.</dd>"
    return f"""<section aria-labelledby="missing">
<h2 id="missing">Missing numbers</h2>
<dl>{items}</dl>
</section>"""


def _provenance(provenance: Mapping[str, Any]) -> str:
    provenance = {key: value for key, value in provenance.items() if key != "missing"}  # has a section of its own
    if not provenance:
        return '<p class="hint">No provenance was recorded with this leaderboard.</p>'
    items = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(_in_words(value))}</dd>" for key, value in provenance.items()
    )
    whole = escape(json.dumps(provenance, indent=2, ensure_ascii=False))
    return f"<dl>{items}</dl>\n<details><summary>As JSON</summary><pre>{whole}</pre></details>"


def _in_words(value: Any) -> str:
    """Return a value of the provenance as one line: mappings as names and values, lists separated by commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        parts = [f"[{_in_words(part)}]" if isinstance(part, list | tuple) else _in_words(part) for part in value]
        return ", ".join(parts) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _json_in_html(value: Any) -> str:
    """Return JSON in which nothing ends or opens a script element; `<` occurs only in JSON's strings."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _source_of(text: str) -> str:
    """Return the hash of a script or style, as a security policy names it."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which vl-convert contains (0.9 MB; takes two seconds)."""
    need, otherwise = "`to_html` needs vl-convert-python", "`to_json` and `to_csv` work without it."
    vl_convert = imported("vl_convert", need, "report", otherwise=otherwise)
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")
