"""Make texts from others, such as names of candidates, safe for terminals and spreadsheets."""

import math
import re
from typing import Any

# Control characters, which a terminal would obey, marks that change the direction of the following text, and
# surrogates, which no encoding can write.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Characters that begin a formula in a spreadsheet. https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA, _DEFUSED = re.compile(r"'*[=+\-@\t\r]"), re.compile(r"'+[=+\-@\t\r]")

_LONGEST_IN_REPR = 60  # characters of a name; archs have hundreds


def printable(text: str) -> str:
    r"""Escape characters that a terminal would obey or could not write; line breaks stay.

    Example:
        >>> print(printable("\x1b[31mred\udcff"))
        \x1b[31mred\udcff
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] == "\n" else _escape(found[0]), text)


def _escape(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode() if char > "\x7f" else repr(char)[1:-1]


def defused(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would treat as a formula; `as_written` removes it.

    Example:
        >>> defused("=1+1"), as_written(defused("=1+1")), defused("resnet18")
        ("'=1+1", '=1+1', 'resnet18')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def as_written(text: str) -> str:
    """Undo `defused`."""
    return text[1:] if _DEFUSED.match(text) else text


def finite_or_text(value: Any) -> Any:
    """Return an infinite number or NaN, which JSON cannot write, as text, and any other value as it is.

    Example:
        >>> finite_or_text(float("inf")), finite_or_text(0.5)
        ('inf', 0.5)
    """
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def shortened(name: str | None) -> str:
    r"""Return a name for a `repr`: in quotation marks, on one line, and without its middle if it is long.

    Example:
        >>> print(shortened("a\nb"), shortened(None))
        'a\nb' None
    """
    if name is None or len(name) <= _LONGEST_IN_REPR:
        return repr(name)
    half = _LONGEST_IN_REPR // 2
    return repr(f"{name[:half]}...{name[-half:]}")


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, in the singular for 1.

    Args:
        number: The number.
        one: The noun in the singular.
        many: The plural; None for the usual one.

    Example:
        >>> count(1, "batch"), count(3, "batch"), count(0, "column that is", "columns that are")
        ('1 batch', '3 batches', '0 columns that are')
    """
    return f"{number:,} {plural(number, one, many)}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Return the noun for a number without the number, as in `count`.

    Example:
        >>> plural(1, "is", "are"), plural(2, "is", "are")
        ('is', 'are')
    """
    if number == 1:
        return one
    return many or _PLURALS.get(one, f"{one}s")


def all_of(number: int, one: str, many: str | None = None) -> str:
    """Return the start of a sentence about all things of a kind.

    Example:
        >>> all_of(1, "candidate"), all_of(3, "candidate")
        ('The only candidate', 'All 3 candidates')
    """
    return f"The only {one}" if number == 1 else f"All {count(number, one, many)}"


# Nouns that do not only get an s.
_PLURALS = {"batch": "batches", "class": "classes", "pass": "passes", "process": "processes"}
