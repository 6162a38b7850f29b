"""Temporary folders end with the run that made them, at the latest when another run begins."""

import json
import tempfile
import time
from pathlib import Path

import pytest

from lightning_zico import ZeroShotSelector
from lightning_zico.folders import remove_leftovers, temporary_folder
from lightning_zico.owners import begin_run
from tests.modules import Classifier, make_batches
from tests.processes import started


def make_and_sleep(parent: str) -> None:
    with temporary_folder(Path(parent)) as folder:
        (folder / "file").touch()
        Path(parent, "made").touch()
        time.sleep(600)


def test_a_folder_is_removed_by_the_next_run_once_its_process_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = started(make_and_sleep, str(tmp_path))
    while not (tmp_path / "made").exists():
        time.sleep(0.01)
    (tmp_path / "made").unlink()
    remove_leftovers()
    assert len(list(tmp_path.glob("*/*/file"))) == 1
    process.kill()
    process.join()
    ZeroShotSelector(proxies="params").rank([Classifier], make_batches())
    assert not list(tmp_path.glob("lightning_zico_*"))


def test_what_is_not_certainly_left_over_stays(tmp_path: Path) -> None:
    owner = begin_run()._replace(begun=1)  # of this pid, and long gone
    assert owner.lives() is False
    elsewhere = owner._replace(place=owner.place._replace(host="elsewhere"))
    gone, strange = json.dumps(owner.to_dict()), json.dumps(elsewhere.to_dict())
    kept = {
        "lightning_zico_without_a_note": None,
        "lightning_zico_with_another_note": "{}",
        "lightning_zico_from_elsewhere": strange,
        "somebody's": gone,
    }
    for name, note in {**kept, "lightning_zico_left": gone}.items():
        (tmp_path / name).mkdir()
        if note is not None:
            (tmp_path / name / "owner.json").write_text(note)
    (tmp_path / "lightning_zico_link").symlink_to(tmp_path / "somebody's", target_is_directory=True)
    with temporary_folder(tmp_path) as folder:
        remove_leftovers(tmp_path)
        assert folder.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "lightning_zico_link"])
    assert (tmp_path / "somebody's" / "owner.json").exists()
