"""Proxies that compare samples by their activations give one reason where activation functions see other rows."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from lightning_zico import ScoreCard, score
from tests.modules import NUM_CLASSES, make_batches

COMPARING = ["naswot", "log_neurons", "swap", "lswag", "linear_regions"]
DIFFER = "not applicable: its activation functions see different numbers of samples."
SIZE = 32  # of images for models of timm
NONE = "not applicable: the network has no activation function."


class Between(nn.Module):
    """A convolution and a linear layer with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, NUM_CLASSES)
        self.between = between

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.between(self.first(images)).mean((2, 3)))


def partition(x: Tensor) -> Tensor:
    """Cut maps into windows of 2 x 2, which are rows."""
    parts = x.unfold(2, 2, 1).unfold(3, 2, 1)  # [N, C, h, w, 2, 2]
    return parts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # [N h w, C, 2, 2]


def windows(x: Tensor) -> Tensor:
    return F.relu(x) + F.gelu(partition(x)).mean()


def windows_first(x: Tensor) -> Tensor:
    return F.gelu(partition(x)).mean() + F.relu(x)


def shared_gate(x: Tensor) -> Tensor:
    """A gate that all samples share has one row."""
    return F.relu(x) * torch.sigmoid(x.mean(0, keepdim=True))


def table_of_positions(x: Tensor) -> Tensor:
    """A bias by positions that an activation function has seen."""
    return F.relu(x) + F.relu(torch.linspace(-1, 1, 2 * x.shape[2] - 1).unsqueeze(1))[: x.shape[2]]


def first_half(x: Tensor) -> Tensor:
    """As of an expert that gets some of the samples."""
    half = len(x) // 2
    return torch.cat([F.relu(F.relu(x)[:half]), x[half:]])


def no_rows(x: Tensor) -> Tensor:
    """As of an expert that gets none of the samples."""
    return F.relu(x) + F.relu(x[:0]).sum()


def maxvit() -> nn.Module:
    """Computes its bias of attention from a table of positions, by a network with an activation function of its own."""
    config = MaxxVitCfg(
        embed_dim=(8,),
        depths=(1,),
        block_type=("M",),
        stem_width=4,
        conv_cfg=MaxxVitConvCfg(),
        transformer_cfg=MaxxVitTransformerCfg(dim_head=4, window_size=(4, 4), rel_pos_type="mlp", rel_pos_dim=8),
    )
    return MaxxVit(config, img_size=SIZE, in_chans=2, num_classes=NUM_CLASSES)


def swin_v2() -> nn.Module:
    return SwinTransformerV2(
        img_size=SIZE, in_chans=2, num_classes=NUM_CLASSES, embed_dim=8, depths=(1,), num_heads=(2,), window_size=4
    )


def scalar_gate(x: Tensor) -> Tensor:
    """A gate without dimensions has no rows, so it is none of the activation functions that are compared."""
    return x * torch.sigmoid(x.mean())


OF_OTHER_ROWS = (windows, windows_first, shared_gate, table_of_positions, first_half, no_rows)
KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{f.__name__: (lambda f=f: Between(f), DIFFER) for f in OF_OTHER_ROWS},
    "maxvit": (maxvit, DIFFER),
    "swin_v2": (swin_v2, DIFFER),
    "scalar_gate": (lambda: Between(scalar_gate), NONE),
    "linear": (lambda: Between(lambda x: x), NONE),
}


def card_of(build: Callable[[], nn.Module], num_samples: int) -> ScoreCard:
    torch.manual_seed(0)
    size = SIZE if build in (maxvit, swin_v2) else 5
    batches = [(F.interpolate(images, size), labels) for images, labels in make_batches(num_samples=num_samples)]
    return score(build(), batches, COMPARING, F.cross_entropy)


@pytest.mark.parametrize("num_samples", [4, 24])  # in a table of all patterns, and past it
@pytest.mark.parametrize("kind", KINDS)
def test_all_give_the_same_reason(kind: str, num_samples: int) -> None:
    build, reason = KINDS[kind]
    card = card_of(build, num_samples)
    assert {name: card[name].error for name in COMPARING} == dict.fromkeys(COMPARING, reason)


def test_a_gate_without_dimensions_changes_no_pattern() -> None:
    gated, plain = (card_of(lambda f=f: Between(f), 4) for f in (lambda x: F.relu(scalar_gate(x)), lambda x: F.relu(x)))
    assert {name: gated[name].value for name in ("naswot", "swap", "log_neurons")} == {
        name: plain[name].value for name in ("naswot", "swap", "log_neurons")
    }
