"""Texts of others, such as names of candidates, for where they could do more than be read."""

import re

# Control characters, with which a terminal obeys, marks that turn the direction of what follows, and halves of
# characters, which no encoding can write.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# With these a spreadsheet begins a formula. https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA, _DEFUSED = re.compile(r"'*[=+\-@\t\r]"), re.compile(r"'+[=+\-@\t\r]")


def printable(text: str) -> str:
    r"""Show with backslashes what a terminal would not show but obey, or could not write; lines stay lines.

    Example:
        >>> print(printable("\x1b[31mred\udcff"))
        \x1b[31mred\udcff
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] == "\n" else _escaped(found[0]), text)


def _escaped(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode() if char > "\x7f" else repr(char)[1:-1]


def defused(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would take for a formula; `as_written` takes it away.

    Example:
        >>> defused("=1+1"), as_written(defused("=1+1")), defused("resnet18")
        ("'=1+1", '=1+1', 'resnet18')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def as_written(text: str) -> str:
    """Undo `defused`."""
    return text[1:] if _DEFUSED.match(text) else text
