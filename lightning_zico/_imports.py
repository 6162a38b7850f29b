"""Optional packages: imported where they are used, with a hint if they are missing.

`RequirementCache` of lightning_utilities would name the missing package, not the extra with the versions that fit.
"""

import json
import shlex
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "lightning-zico"


def import_optional(module: str, need: str, extra: str, *, otherwise: str = "") -> Any:
    """Import a module of an optional package.

    Args:
        module: Full name of the module.
        need: What needs which package, in words; the error message starts with it.
        extra: Extra of this package that installs it.
        otherwise: What works without the package, as a sentence.

    Raises:
        ModuleNotFoundError: If the package is not installed. The message says how to install it.

    Example:
        >>> import_optional("no_such_package", "Drawing needs paint", "paint")
        Traceback (most recent call last):
        ModuleNotFoundError: Drawing needs paint: `pip install ...[paint]'`.
    """
    try:
        import_module(module.partition(".")[0])  # otherwise a loaded submodule would be found without its package
        return import_module(module)
    except ModuleNotFoundError as error:
        hint = f"{need}: `{install_command(extra)}`."
        raise ModuleNotFoundError(f"{hint} {otherwise}".rstrip()) from error


def install_command(extra: str) -> str:
    """Return the command that installs an extra from where this package was installed: an index, a folder or a file."""
    try:
        recorded = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        recorded = None
    origin = json.loads(recorded) if recorded else {}
    url, editable = origin.get("url", ""), "-e " * origin.get("dir_info", {}).get("editable", False)
    if url.startswith("file:"):
        what = f"{url2pathname(urlsplit(url).path)}[{extra}]"
    else:
        vcs = f"{origin['vcs_info']['vcs']}+" if "vcs_info" in origin else ""
        what = f"{_NAME}[{extra}]" + (f" @ {vcs}{url}" if url else "")
    return f"pip install {editable}{shlex.quote(what)}"
