"""Texts are in plain English: the worst phrases of earlier versions do not come back.

The laws hold for docstrings, other string constants and comments of the package, the benchmarks and the examples, and
for the pages beside the code.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted(ROOT.rglob("lightning_zico/**/*.py")),
        *sorted(path for kind in ("*.py", "packages/*.py", "*.md") for path in (ROOT / "benchmarks").glob(kind)),
        *sorted((ROOT / "examples").glob("*.py")),
    )
]

ANYWHERE = {
    "write `expected ...`": r"\b[Nn]eeded\s+(?:is|are)\b",
    "name what is wrong with it": r"(?<!\bthere\s)\bis\s+none\b(?!\s+of\b)",  # "None where there is none" is fine
    "repeat what is meant": r"\bLikewise\b|\bSee\s+there\b",
    "name the person or thing": r"\b[Ww]hoever\b",
    "put the subject before the verb": r"\b(?:Looked|Saved|Reached|Out\s+of\s+reach)\s+(?:(?:at|into)\s+)?are\b",
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
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('raise ValueError(\n    f"`k` is {k}; needed is "\n    "a number"\n)', 2),
        ('x = "Needed are two."', 1),
        ("x = 1  # a chunk size that is none\n", 1),
        ("x = 1\n# what is\n# none\n", 3),
        ("x = 1  # so that whoever reads it knows", 1),
        ('def f():\n    """Read.\n\n    Looked\n    at are files.\n    """', 5),
        ('x = "Out of reach are files."', 1),
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
