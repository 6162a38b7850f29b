"""Results as one HTML page that needs nothing else: no network, no other file.

The figures are drawn in the browser by Vega-Lite, which is embedded in the page. A security policy in the page allows
only these scripts, by their hashes, and no connection, so that a candidate's name can never run as code.
"""

import base64
import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from html import escape
from importlib import resources
from typing import Any

from lightning_zico._imports import import_optional
from lightning_zico.report.figures import MOST_NAMES, Agreement, Figure
from lightning_zico.report.vega import Spec, min_width_of, spec_of
from lightning_zico.texts import count, finite_or_text, printable

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
    "cost_macs": "multiply-accumulate operations for one sample, at the resolution or number of tokens of the search",
    "cost_params": "number of parameters, computed from the arch",
    "cost_depth": "number of linear and convolutional layers, as the space counts them",
}
_LONG_NAME = 40  # characters; archs have hundreds
# With more rows or reasons of failures than this, the page would have many megabytes.
_MOST_ROWS = 20_000
# Rows that are shown at first, and added by each press of a button; these are also the ones in the HTML itself.
_STEP = 100
_FIRST_FAILURES = 20  # failures that are shown at first, so that they do not hide what comes below
# Layers and tracebacks of more candidates than this would outweigh everything else on the page.
_MOST_DETAILS = 100
# Nobody reads more reasons for missing numbers than this, or more than `MOST_NAMES` names for each.
_MOST_REASONS = 100
# Numbers from the first limit on are rounded to integers; from the second on, a double has no more digits to write out.
_LEAST_ROUNDED, _MOST_IN_FULL = 1e5, 1e15
# Figures up to this width in pixels fit beside others; those above this height have two others beside them.
_WIDEST_HALF, _HIGHEST_SHORT = 480, 600
_SORTED = ' aria-sort="ascending"'


@dataclass(frozen=True)
class Detail:
    """What a page shows of one candidate beyond its row.

    Args:
        hyperparameters: Its hyperparameters.
        by_repeat: Its scores in each repeat, by column.
        layers: What each layer added to a score, by column and by layer.
        reasons: Why it has no number, by column.
        traceback: Where the exception behind its first error was raised; None if there was none.
    """

    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    by_repeat: Mapping[str, Sequence[float]] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    traceback: str | None = None


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Args:
        title: Title of the page.
        notes: Sentences to read before the numbers are trusted.
        columns: Names of the columns of the table, with ``rank``, ``name`` and ``error``.
        rows: Rows of the table, with ``rank``, ``name`` and ``error``; best first, failed ones last.
        figures: Figures in their order.
        missing: Why candidates with a score have no number in some columns: each with its ``reason``, ``proxies`` and
            ``names``.
        provenance: What the numbers depend on, in plain values.
        lower_first: Names of the columns whose lowest numbers are the best, or are read first.
        details: More about the candidates, by name; candidates may be absent.
        has_cards: Whether the details come from score cards; otherwise they say what is missing.
    """

    title: str
    notes: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    figures: Sequence[Figure] = ()
    missing: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    lower_first: Container[str] = ()
    details: Mapping[str, Detail] = field(default_factory=dict)
    has_cards: bool = True

    @property
    def ranked(self) -> list[Mapping[str, Any]]:
        """The rows with a rank."""
        return [row for row in self.rows if row["rank"] is not None]

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """The rows without a rank."""
        return [row for row in self.rows if row["rank"] is None]

    @cached_property
    def texts(self) -> frozenset[str]:
        """Names of the columns that hold anything but numbers."""
        found = {name for name in self.columns if any(isinstance(row[name], str | bool) for row in self.rows)}
        return frozenset({"name", "error"} | found)


def html_of(page: Page) -> str:
    """Return the text of a page.

    Raises:
        ModuleNotFoundError: If vl-convert-python is not installed.
    """
    style, vega = _part("page.css"), _vega()
    table, figures = _part("table.js") + _part("detail.js"), _part("figures.js")
    allowed = " ".join(map(_source_of, (table, vega, figures)))
    policy = (
        # Vega sets style attributes on the marks that it draws.
        f"default-src 'none'; script-src {allowed}; style-src-elem {_source_of(style)}; "
        "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    specs = list(map(spec_of, page.figures))
    sections = {
        "Figures": _figures(page.figures, specs),
        "Candidates": _candidates(page),
        "Failed candidates": _failures(page.failed),
        "Missing numbers": _missing(page.missing),
        "What the numbers depend on": _provenance(page.provenance),
    }
    sections = {title: content for title, content in sections.items() if content}
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
<nav aria-label="On this page">{"".join(f'<a href="#{_id_of(title)}">{title}</a>' for title in sections)}</nav>
</header>
<main>
{_join(page.notes)}
<noscript><p class="hint">Without JavaScript there are no figures, and long lists end early.</p></noscript>
{"".join(_section(title, content) for title, content in sections.items())}
</main>
<dialog id="detail" aria-labelledby="detail-title">
<button type="button" id="close">Close</button>
<h2 id="detail-title"></h2>
<div id="detail-content"></div>
</dialog>
<script type="application/json" id="data">{_json_in_html(_data_of(page))}</script>
<script type="application/json" id="charts">{_json_in_html(specs)}</script>
<script type="module">{table}</script>
<script type="module">{vega}</script>
<script type="module">{figures}</script>
</body>
</html>
"""


def _id_of(title: str) -> str:
    return title.lower().replace(" ", "-")


def _section(title: str, content: str) -> str:
    return f"""<section aria-labelledby="{_id_of(title)}">
<h2 id="{_id_of(title)}">{title}</h2>
{content}
</section>
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


def _candidates(page: Page) -> str:
    columns = [column for column in page.columns if column != "error"]  # only failed candidates have one
    headers = "".join(
        f'<th scope="col" data-column="{page.columns.index(column)}" class="{_class_of(page, column)}"'
        f"{_SORTED if column == 'rank' else ''}>"
        f'<button type="button">{_text(column)}</button></th>'
        for column in columns
    )
    ranked = page.ranked
    body = "\n".join(_row(page, row, columns) for row in ranked[:_STEP])
    long = ' class="long"' if any(len(row["name"]) > _LONG_NAME for row in ranked) else ""
    cut = "" if len(ranked) <= _MOST_ROWS else f" The first {_MOST_ROWS:,} of {len(ranked):,} are shown."
    meanings = "".join(
        f"<dt>{column}</dt><dd>{_text(_MEANINGS[column])}</dd>" for column in columns if column in _MEANINGS
    )
    return f"""<div class="controls" hidden><label for="filter">Filter</label>
<input id="filter" type="search" placeholder="name or hyperparameter" autocomplete="off" spellcheck="false">
<span id="status" role="status"></span></div>
<div class="controls" hidden><button type="button" id="compare"></button>
<button type="button" id="csv">Download CSV</button>
<button type="button" id="markdown">Copy as Markdown</button>
<span id="done" role="status"></span></div>
<details class="controls" hidden><summary>Choose columns</summary><div id="columns"></div></details>
<div class="scroll" role="region" aria-labelledby="caption" tabindex="0">
<table id="ranking"{long}>
<caption id="caption">Candidates.{cut}</caption>
<thead><tr>{headers}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
<button type="button" id="more" class="more" hidden></button>
<details><summary>What the columns mean</summary><dl>{meanings}</dl></details>"""


def _row(page: Page, row: Mapping[str, Any], columns: Iterable[str]) -> str:
    cells = ""
    for column in columns:
        start, end = ('<th scope="row"', "</th>") if column == "name" else ("<td", "</td>")
        cells += f'{start} class="{_class_of(page, column)}">{_text(_format(row[column]))}{end}'
    return f"<tr>{cells}</tr>"


def _class_of(page: Page, column: str) -> str:
    return "text name" if column == "name" else "text" if column in page.texts else "number"


def _format(value: Any) -> str:
    """Return a value as `format` in table.js does.

    Example:
        >>> [_format(value) for value in (None, 1234.0, 1234.5678, 123456.789, 0.00012345678, 1.5e-7, True, "adam")]
        ['', '1,234', '1,234.6', '123,457', '0.00012346', '1.5000e-07', 'True', 'adam']
    """
    if value is None:
        return ""
    if isinstance(value, str | bool):
        return str(value)
    size = abs(value)
    if size < _MOST_IN_FULL and (value == int(value) or size >= _LEAST_ROUNDED):
        return f"{value:,.0f}"
    return f"{float(f'{value:.5g}'):,}".removesuffix(".0") if 1e-4 <= size < _LEAST_ROUNDED else f"{value:.4e}"


def _data_of(page: Page) -> dict[str, Any]:
    """Return what the table, the list of failures and the details are drawn from, column by column."""
    ranked, failed = page.ranked[:_MOST_ROWS], page.failed[:_MOST_ROWS]
    rows = [*ranked, *failed]
    columns = [
        {
            "name": printable(column),
            "isText": column in page.texts,
            "lowIsBest": column in page.texts or column in page.lower_first,
            "isSearched": column in page.texts or column.startswith("hparams/"),
        }
        for column in page.columns
    ]
    # Ranked and failed ones apart, so that many failures do not crowd out the best.
    with_details = [*range(len(ranked))[:_MOST_DETAILS], *range(len(ranked), len(rows))[:_MOST_DETAILS]]
    tracebacks: dict[str, int] = {}
    details = {}
    for idx in with_details:
        if (detail := page.details.get(rows[idx]["name"])) and (plain := _plain_detail(detail, tracebacks)):
            details[idx] = plain
    return {
        "longName": _LONG_NAME,
        "mostDetails": _MOST_DETAILS,
        "hasCards": page.has_cards,
        "canHaveParts": any(map(_has_parts, page.details.values())),
        "step": _STEP,
        "numFailuresFirst": _FIRST_FAILURES,
        "numRanked": len(ranked),
        "columns": columns,
        "values": [[_plain(row[column]) for row in rows] for column in page.columns],
        "details": details,
        "tracebacks": list(map(printable, tracebacks)),
    }


def _has_parts(detail: Detail) -> bool:
    """Check whether a detail comes from a score card that the page shows for the first candidates only."""
    return bool(detail.by_repeat or detail.layers or detail.traceback)


def _plain_detail(detail: Detail, tracebacks: dict[str, int]) -> dict[str, Any]:
    """Return a detail for JSON, without what is empty; equal tracebacks are kept once."""
    layers = list(dict.fromkeys(layer for added in detail.layers.values() for layer in added))
    parts: dict[str, Any] = {
        "hyperparameters": {printable(name): _plain(value) for name, value in detail.hyperparameters.items()},
        "byRepeat": {name: ", ".join(map(_format, values)) for name, values in detail.by_repeat.items()},
        "layers": list(map(printable, layers)),
        "added": {
            name: [None if layer not in added else float(f"{added[layer]:.6g}") for layer in layers]
            for name, added in detail.layers.items()
        },
        "reasons": {printable(name): printable(reason) for name, reason in detail.reasons.items()},
    }
    parts = {key: part for key, part in parts.items() if part}
    if detail.traceback is not None:
        parts["traceback"] = tracebacks.setdefault(detail.traceback, len(tracebacks))
    return parts


def _plain(value: Any) -> Any:
    value = finite_or_text(value)
    return printable(str(value)) if isinstance(value, str | bool) else value


def _figures(figures: Sequence[Figure], specs: Sequence[Spec]) -> str:
    if not figures:
        return ""
    drawn = "\n".join(map(_figure, figures, specs))
    tables = "".join(_agreement_table(figure) for figure in figures if isinstance(figure, Agreement))
    return f"""<div class="figures">
{drawn}
</div>
{tables}"""


def _figure(figure: Figure, spec: Spec) -> str:
    height = f"min-height: {spec['height']}px"  # so that nothing moves when the figure is drawn
    drawing = f'<div class="chart" style="{height}"></div>'
    min_width = min_width_of(figure)
    place = " full" * (min_width > _WIDEST_HALF) + " tall" * (spec["height"] > _HIGHEST_SHORT)
    if min_width:
        drawing = (
            f'<div class="wide" role="group" aria-label="{_text(figure.title)}" tabindex="0">'
            f'<div class="chart" style="{height}; min-width: {min_width}px"></div></div>'
        )
    words = f"<h3>{_text(figure.title)}</h3><figcaption>{_text(figure.text)}</figcaption>"
    return f'<figure class="{place.strip()}">{words}{drawing}</figure>'


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


def _failures(failed: Sequence[Mapping[str, Any]]) -> str:
    if not failed:
        return ""
    items = "".join(f"<dt>{_text(row['name'])}</dt><dd>{_text(row['error'])}</dd>" for row in failed[:_FIRST_FAILURES])
    return f"""<dl id="failures" class="failed">{items}</dl>
<button type="button" id="more-failures" class="more" hidden></button>"""


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
    return f"<dl>{items}</dl>"


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
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _source_of(text: str) -> str:
    """Return the hash of a script or style, as a security policy names it."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _part(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which vl-convert contains (0.9 MB; takes two seconds)."""
    need, otherwise = "`to_html` needs vl-convert-python", "`to_json` and `to_csv` work without it."
    vl_convert = import_optional("vl_convert", need, "report", otherwise=otherwise)
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")
