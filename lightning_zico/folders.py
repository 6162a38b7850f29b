"""Temporary folders that record their owner, so that those of killed runs can be removed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from lightning_zico.owners import Owner, begin_run, end_run

_PREFIX = "lightning_zico_"
_OWNER, _CONTENT = "owner.json", "content"
# Maximum number of folders checked at a time, so that many leftovers do not slow down a start.
_MOST_LOOKED_AT = 100


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Create a folder, and remove it with its content when the body ends.

    Args:
        parent: The parent folder; the system's folder for temporary files if None.
    """
    owner = begin_run()
    try:
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        try:
            Path(folder, _OWNER).write_text(owner.to_json(), encoding="utf-8")
            content = Path(folder, _CONTENT)
            content.mkdir()
            yield content
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        end_run(owner)


def remove_leftovers(parent: Path | None = None) -> None:
    """Remove the folders of `temporary_folder` whose runs were killed; if in doubt, a folder stays.

    Args:
        parent: The folder to search; the system's folder for temporary files if None.
    """
    with os.scandir(parent or tempfile.gettempdir()) as entries:
        ours = (entry.path for entry in entries if entry.name.startswith(_PREFIX) and _is_own(entry))
        for folder in list(islice(ours, _MOST_LOOKED_AT)):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_own(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, not a link, that belongs to this user."""
    try:
        is_users = not hasattr(os, "getuid") or entry.stat(follow_symlinks=False).st_uid == os.getuid()
        return is_users and entry.is_dir(follow_symlinks=False)
    except OSError:  # removed in the meantime
        return False


def _is_left(folder: str) -> bool:
    try:
        if not Path(folder, _OWNER).is_file():  # a pipe would be waited for
            return False
        owner = Owner.from_json(Path(folder, _OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not ours, removed in the meantime, or just being created
        return False
    return owner.lives() is False
