"""Texts are in plain English: the worst phrases of earlier versions do not come back.

The laws hold for docstrings, other string constants and comments of the package, and for README.md and docs/.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted(ROOT.rglob("lightning_zico/**/*.py")),
    )
]
# Files that are still to be rewritten. A file that no longer offends has to be taken off.
NOT_YET: tuple[str, ...] = (
    "lightning_zico/_registry.py",
    "lightning_zico/bridge.py",
    "lightning_zico/budget.py",
    "lightning_zico/candidates.py",
    "lightning_zico/cli.py",
    "lightning_zico/commands.py",
    "lightning_zico/datamodules.py",
    "lightning_zico/demos.py",
    "lightning_zico/engine/batches.py",
    "lightning_zico/engine/gradients.py",
    "lightning_zico/engine/latency.py",
    "lightning_zico/engine/layers.py",
    "lightning_zico/engine/lazy.py",
    "lightning_zico/engine/learned.py",
    "lightning_zico/engine/memory.py",
    "lightning_zico/engine/moments.py",
    "lightning_zico/engine/observers.py",
    "lightning_zico/engine/operators.py",
    "lightning_zico/engine/probe.py",
    "lightning_zico/engine/products.py",
    "lightning_zico/engine/size.py",
    "lightning_zico/engine/stateless.py",
    "lightning_zico/engine/undo.py",
    "lightning_zico/finals.py",
    "lightning_zico/hooks.py",
    "lightning_zico/metrics.py",
    "lightning_zico/owners.py",
    "lightning_zico/proxies/az.py",
    "lightning_zico/proxies/base.py",
    "lightning_zico/proxies/fisher.py",
    "lightning_zico/proxies/grad_norm.py",
    "lightning_zico/proxies/gradsign.py",
    "lightning_zico/proxies/latency.py",
    "lightning_zico/proxies/lswag.py",
    "lightning_zico/proxies/meco.py",
    "lightning_zico/proxies/prior.py",
    "lightning_zico/proxies/snip.py",
    "lightning_zico/proxies/swap.py",
    "lightning_zico/proxies/synflow.py",
    "lightning_zico/proxies/zico.py",
    "lightning_zico/proxies/zico_bc.py",
    "lightning_zico/ranking/aggregate.py",
    "lightning_zico/ranking/beside.py",
    "lightning_zico/ranking/correlation.py",
    "lightning_zico/ranking/racing.py",
    "lightning_zico/ranking/recipes.py",
    "lightning_zico/ranking/uncertainty.py",
    "lightning_zico/report/charts.py",
    "lightning_zico/report/html.py",
    "lightning_zico/report/plots.py",
    "lightning_zico/report/series.py",
    "lightning_zico/results.py",
    "lightning_zico/scoring/arguments.py",
    "lightning_zico/scoring/cache.py",
    "lightning_zico/scoring/cached.py",
    "lightning_zico/scoring/choice.py",
    "lightning_zico/scoring/executors.py",
    "lightning_zico/scoring/fingerprint.py",
    "lightning_zico/scoring/given_data.py",
    "lightning_zico/scoring/placement.py",
    "lightning_zico/scoring/pool.py",
    "lightning_zico/scoring/process_state.py",
    "lightning_zico/scoring/progress.py",
    "lightning_zico/scoring/provenance.py",
    "lightning_zico/scoring/ray_executor.py",
    "lightning_zico/scoring/repeats.py",
    "lightning_zico/scoring/scorer.py",
    "lightning_zico/scoring/work.py",
    "lightning_zico/search/costs.py",
    "lightning_zico/search/evolution.py",
    "lightning_zico/search/trials.py",
    "lightning_zico/search/zero_shot.py",
    "lightning_zico/selector.py",
    "lightning_zico/spaces/_parts.py",
    "lightning_zico/spaces/autoformer.py",
    "lightning_zico/spaces/base.py",
    "lightning_zico/spaces/nas_bench_101.py",
    "lightning_zico/spaces/nas_bench_201.py",
    "lightning_zico/spaces/nats_bench_size.py",
    "lightning_zico/spaces/plainnet.py",
    "lightning_zico/spaces/transnas.py",
    "lightning_zico/trainers.py",
    "lightning_zico/zoo/__init__.py",
    "lightning_zico/zoo/base.py",
    "lightning_zico/zoo/classifiers.py",
    "lightning_zico/zoo/torchvision_models.py",
    "lightning_zico/zoo/transformers_models.py",
)

ANYWHERE = {
    "write `expected ...`": r"\b[Nn]eeded\s+(?:is|are)\b",
    "name what is wrong with it": r"(?<!\bthere\s)\bis\s+none\b(?!\s+of\b)",  # "None where there is none" is fine
    "repeat what is meant": r"\bLikewise\b|\bSee\s+there\b",
}
DOCSTRINGS = {
    "begin with `Return`, `Check`, `Count` or `Whether`": r"\A\s*(?:Tell|Say|Give)\b",
    "describe the argument by a noun": r"^\s+\*{0,2}\w+: Of\s+(?:the|an?)\b",
}


class Text(NamedTuple):
    """A text of a file, and the first and last line that it stands on."""

    text: str
    first: int
    last: int
    is_docstring: bool = False


def texts_of(name: str, content: str) -> Iterator[Text]:
    if not name.endswith(".py"):
        yield Text(content, 1, content.count("\n") + 1)
        return
    tree = ast.parse(content)
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node.body[0] for node in ast.walk(tree) if isinstance(node, scopes) and ast.get_docstring(node)]
    docstrings = {statement.value for statement in documented if isinstance(statement, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(node.value, node.lineno, node.end_lineno or node.lineno, node in docstrings)
    yield from comments_of(content)


def comments_of(content: str) -> Iterator[Text]:
    """Yield the comments; lines below each other are one."""
    lines: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if lines and line != last + 1:
            yield Text("\n".join(lines), last + 1 - len(lines), last)
            lines = []
        lines.append(token.string.lstrip("#"))
        last = line
    if lines:
        yield Text("\n".join(lines), last + 1 - len(lines), last)


def offences(name: str, content: str) -> list[str]:
    """Return the offences of a file in the order of their lines."""
    found = []
    for text, first, last, is_docstring in texts_of(name, content):
        for advice, pattern in {**ANYWHERE, **(DOCSTRINGS if is_docstring else {})}.items():
            for match in re.finditer(pattern, text, re.MULTILINE):
                line = min(first + text.count("\n", 0, match.end()), last)
                context = " ".join(text[max(match.start() - 40, 0) : match.end() + 40].split())
                found.append((line, f"{name}:{line}: {context!r}: {advice}"))
    return [offence for _, offence in sorted(found)]


@pytest.mark.parametrize("name", FILES)
def test_texts_are_plain_english(name: str) -> None:
    found = offences(name, (ROOT / name).read_text(encoding="utf-8"))
    if name in NOT_YET:
        assert found, f"{name} is plain English now: take it off NOT_YET."
        return
    assert not found, "\n".join(found)


def test_files_still_to_be_rewritten_exist() -> None:
    assert sorted(set(NOT_YET)) == list(NOT_YET)
    assert set(NOT_YET) <= set(FILES)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('raise ValueError(\n    f"`k` is {k}; needed is "\n    "a number"\n)', 2),
        ('x = "Needed are two."', 1),
        ("x = 1  # a chunk size that is none\n", 1),
        ("x = 1\n# what is\n# none\n", 3),
        ('"""Module."""\n\n\nclass A:\n    """A.\n\n    Attributes:\n        b: See there.\n    """', 8),
        ('def f():\n    """Add.\n\n    Args:\n        a: Of the sum.\n        b: Likewise.\n    """', 5),
        ('def f():\n    """Tell the number."""', 2),
        ('class A:\n    async def f():\n        """Give a number."""', 3),
    ],
)
def test_an_offence_is_found_with_its_line(content: str, line: int) -> None:
    assert offences("a.py", content)[0].startswith(f"a.py:{line}: ")


@pytest.mark.parametrize(
    "content",
    [
        'x = "`x` is None."',
        '"""None where there is none."""',
        '# where there is\n# none, or where it is none of these\nx = "Give a number."',
        'def f():\n    """Return it.\n\n    Say more.\n    """',
        "needed_is = 1",
    ],
)
def test_plain_texts_pass(content: str) -> None:
    assert offences("a.py", content) == []


def test_a_page_is_read_to_its_last_line() -> None:
    assert offences("a.md", "# A\n\nneeded\nis") == ["a.md:4: '# A needed is': write `expected ...`"]
