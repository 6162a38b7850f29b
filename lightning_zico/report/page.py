"""Results as one HTML page that needs nothing else: no network, no other file.

The figures are drawn in the browser by Vega-Lite, which is embedded in the page. A security policy in the page allows
only these scripts, by their hashes, and no connection, so that a candidate's name can never run as code.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from lightning_zico._imports import import_optional
from lightning_zico.report.figures import MOST_NAMES, Agreement, Figure
from lightning_zico.report.vega import min_width_of, spec_of
from lightning_zico.texts import count, printable

# Meanings of the columns that are not named after a proxy.
_MEANINGS = {
    "rank": "1 is best; equal scores share a rank; none if the candidate failed",
    "score": "the number that candidates are ranked by; with repeats, its mean",
    "final": "the monitored metric after training in the finals",
    "final_rank": "rank among the finalists",
    "final_epochs": "number of epochs that the candidate was trained for in the finals",
    "final_std_error": "standard error of the monitored metric over the seeds",
    "learned": "rank that the candidate is expected to have after training, learned from the finals",
    "learned_low": "lower end of the 95 % interval of the learned rank",
    "learned_high": "upper end of the 95 % interval of the learned rank",
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


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Args:
        title: Title of the page.
        notes: Sentences to read before the numbers are trusted.
        columns: Names of the columns of the table.
        rows: Rows of the table, with ``rank``, ``name`` and ``error``; best first, failed ones last.
        figures: Figures in their order.
        missing: Why candidates with a score have no number in some columns: each with its ``reason``, ``proxies`` and
            ``names``.
        provenance: What the numbers depend on, in plain values.
    """

    title: str
    notes: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    figures: Sequence[Figure] = ()
    missing: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """The rows without a rank."""
        return [row for row in self.rows if row["rank"] is None]


def html_of(page: Page) -> str:
    """Return the text of a page.

    Raises:
        ModuleNotFoundError: If vl-convert-python is not installed.
    """
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
<title>{_text(page.title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{_text(page.title)}</h1>
<p class="lead">{_text(_lead(page))}</p>
</header>
<main>
{_join(page.notes)}
<noscript><p class="hint">Without JavaScript the table is complete, but not sorted, filtered or drawn.</p></noscript>
<section aria-labelledby="candidates">
<h2 id="candidates">Candidates</h2>
{_table(page)}
</section>
{_figures(page.figures)}
{_errors(page.failed)}
{_missing(page.missing)}
<section aria-labelledby="provenance">
<h2 id="provenance">What the numbers depend on</h2>
{_provenance(page.provenance)}
</section>
</main>
<script type="application/json" id="charts">{_json_in_html([spec_of(figure) for figure in page.figures])}</script>
<script type="module">{vega}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def _lead(page: Page) -> str:
    num_rows, failed = len(page.rows), len(page.failed)
    text = count(num_rows, "candidate")
    if failed:
        text += f", {failed} failed"
    return text if failed == num_rows else f"{text}; the best is {page.rows[0]['name']}"


def _join(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _table(page: Page) -> str:
    columns = page.columns
    headers = "".join(
        f'<th scope="col" data-kind="{"text" if column in _TEXTS else "number"}" class="{_class_of(column)}"'
        f"{_SORTED if column == 'rank' else ''}>"
        f'<button type="button">{_text(column)}</button></th>'
        for column in columns
    )
    body = "\n".join(_row(row, columns) for row in page.rows[:_MOST_ROWS])
    num_shown = min(len(page.rows), _MOST_ROWS)
    long = ' class="long"' if any(len(row["name"]) > _LONG_NAME for row in page.rows) else ""
    cut = "" if num_shown == len(page.rows) else f" The first {num_shown:,} of {len(page.rows):,} are shown."
    meanings = "".join(
        f"<dt>{column}</dt><dd>{_text(_MEANINGS[column])}</dd>" for column in columns if column in _MEANINGS
    )
    return f"""<div class="filter"><label for="filter">Show candidates with</label>
<input id="filter" type="search" autocomplete="off" spellcheck="false">
<span id="status" role="status">{num_shown} of {count(num_shown, "candidate")}</span></div>
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


def _row(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    cells = "".join(_cell(column, row[column]) for column in columns)
    return f"<tr{' class=failed' if row['rank'] is None else ''}>{cells}</tr>"


def _cell(column: str, value: Any) -> str:
    data = "" if value is None else f' data-value="{_text(value)}"'
    kind = f' class="{_class_of(column)}"' if column in _TEXTS else ""
    if column == "rank" and value is None:
        return "<td>-</td>"
    if column == "name":
        return f'<th scope="row"{kind}{data}>{_text(value)}</th>'
    return f"<td{kind}{data}>{_text(_format(value))}</td>"


def _class_of(column: str) -> str:
    return "text name" if column == "name" else "text" if column in _TEXTS else "number"


def _format(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:,.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _figures(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    drawn = "\n".join(map(_figure, figures))
    tables = "".join(_agreement_table(figure) for figure in figures if isinstance(figure, Agreement))
    return f"""<section aria-labelledby="figures">
<h2 id="figures">Figures</h2>
<div class="figures">
{drawn}
</div>
{tables}</section>"""


def _figure(figure: Figure) -> str:
    drawing = '<div class="chart"></div>'
    if min_width := min_width_of(figure):
        drawing = (
            f'<div class="wide" role="group" aria-label="{_text(figure.title)}" tabindex="0">'
            f'<div class="chart" style="min-width: {min_width}px"></div></div>'
        )
    return f"<figure><h3>{_text(figure.title)}</h3><figcaption>{_text(figure.text)}</figcaption>{drawing}</figure>"


def _agreement_table(agreement: Agreement) -> str:
    headers = "".join(f'<th scope="col" class="plain">{_text(name)}</th>' for name in ("", *agreement.names))
    rows = "\n".join(
        f'<tr><th scope="row" class="text name">{_text(name)}</th>{"".join(f"<td>{tau}</td>" for tau in taus)}</tr>'
        for name, taus in zip(agreement.names, agreement.labels, strict=True)
    )
    return f"""<details><summary>Agreement of the proxies as a table</summary>
<div class="scroll" role="region" aria-labelledby="taus" tabindex="0"><table>
<caption id="taus">Kendall's tau of every two columns</caption>
<thead><tr>{headers}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
</details>
"""


def _errors(failed: Sequence[Mapping[str, Any]]) -> str:
    if not failed:
        return ""
    shown = failed[:_MOST_ROWS]
    items = "".join(f"<dt>{_text(row['name'])}</dt><dd>{_text(row['error'])}</dd>" for row in shown)
    if len(shown) < len(failed):
        items += f"<dt>And</dt><dd>{len(failed) - len(shown):,} more.</dd>"
    return f"""<section aria-labelledby="errors">
<h2 id="errors">Failed candidates</h2>
<dl>{items}</dl>
</section>"""


def _missing(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the section on why candidates with a score have no number in other columns."""
    if not groups:
        return ""
    items = ""
    for group in groups[:_MOST_REASONS]:
        names = ", ".join(group["names"][:MOST_NAMES])
        if len(group["names"]) > MOST_NAMES:
            names += f" and {len(group['names']) - MOST_NAMES:,} more"
        items += f"<dt>{_text(', '.join(group['proxies']))}</dt><dd>{_text(group['reason'])} ({_text(names)})</dd>"
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
    items = "".join(f"<dt>{_text(key)}</dt><dd>{_text(_in_words(value))}</dd>" for key, value in provenance.items())
    whole = _text(json.dumps(provenance, indent=2, ensure_ascii=False))
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


def _text(value: Any) -> str:
    """Return a value as text in HTML, without characters that control a terminal or the direction of the text."""
    return escape(printable(str(value)))


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
    vl_convert = import_optional("vl_convert", need, "report", otherwise=otherwise)
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")
