"""An extension of Griffe, which reads the docstrings for the reference: it shows `Example:` as code."""

from typing import Any

from griffe import Extension, Object


class ExamplesAsCode(Extension):
    """Rename the section, since Griffe knows only `Examples:` and would show `>>>` as quotations."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename it in the docstring of an object as soon as that is read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
