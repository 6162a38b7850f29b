"""Pretrained weights made on the spot, in caches as timm and torchvision keep them; nothing is downloaded."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

# Small models of timm with a published accuracy: 57.7, 64.6 and 62.9 at their own sizes.
CHECKPOINTS = ("mobilenetv3_small_050.lamb_in1k", "lcnet_050.ra2_in1k", "tf_mobilenetv3_small_minimal_100.in1k")


def cache_timm(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, dict[str, torch.Tensor]]:
    """Fill the cache of Hugging Face's hub with fresh weights, and cut the connection.

    Returns:
        The weights, by checkpoint.
    """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder.mkdir(exist_ok=True)
    states = {}
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        states[name] = timm.create_model(name.partition(".")[0]).state_dict()
        repository = folder / f"models--timm--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
        (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
        save_file(states[name], repository / "snapshots" / ("0" * 40) / "model.safetensors")
    return states


def cache_torchvision(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, torch.Tensor]:
    """Fill torchvision's cache with fresh weights of a model, and cut the connection.

    Returns:
        The weights.
    """
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = torchvision.models.get_model(name).state_dict()
    torch.save(state, folder / "checkpoints" / weights.url.rpartition("/")[2])
    return state


def refuse(url: str, *_: object, **__: object) -> None:
    raise ConnectionError(f"no connection to {url}")
