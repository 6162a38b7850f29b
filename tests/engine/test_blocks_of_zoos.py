"""Networks of three libraries and of our spaces, and the blocks that a reader of their code would list."""

import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_zico.engine.anatomy import Anatomy
from lightning_zico.spaces import get_space

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    """A network.

    Args:
        name: What it is called.
        build: Makes it.
        listed: Shell patterns of the blocks' names; an asterisk stands for a number.
        inputs: Makes what it reads.
        miss: Why other blocks are found; None where the same are.
    """

    name: str
    build: Callable[[], nn.Module]
    listed: tuple[str, ...]
    inputs: Callable[[], Tensor]
    miss: str | None = None


def images(side: int = 224) -> Tensor:
    return torch.zeros(2, 3, side, side)


def tokens() -> Tensor:
    return torch.zeros(2, 8, dtype=torch.long)


class _Encoded(nn.Module):
    """A network of transformers, which reads a mapping."""

    def __init__(self, config: Any, kind: str) -> None:
        super().__init__()
        self.net = getattr(transformers, f"AutoModelFor{kind}").from_config(config)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            return self.net(inputs).logits
        given = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}
        if self.net.config.is_encoder_decoder:
            given["decoder_input_ids"] = inputs
        return self.net(**given).logits


def _torchvision(name: str, *listed: str, **settings: Any) -> Case:
    return Case(f"torchvision {name}", lambda: torchvision.models.get_model(name, **settings), listed, images)


def _timm(name: str, *listed: str) -> Case:
    return Case(f"timm {name}", lambda: timm.create_model(name), listed, images)


def _transformers(
    name: str,
    kind: str,
    *listed: str,
    read: Callable[[], Tensor] = tokens,
    miss: str | None = None,
    **settings: Any,
) -> Case:
    def build() -> nn.Module:
        return _Encoded(getattr(transformers, f"{name}Config")(**settings), kind)

    return Case(f"transformers {name}", build, tuple(f"net.{each}" for each in listed), read, miss)


def _space(name: str, side: int, miss: str | None = None) -> Case:
    space: Any = get_space(name)
    arch = space.sample(random.Random(0))
    return Case(f"space {name}", lambda: space.build(arch), tuple(space.blocks(arch)), lambda: images(side), miss)


_ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}

CASES = [
    _torchvision("resnet18", "layer*.*"),
    _torchvision("resnet50", "layer*.*"),
    _torchvision("mobilenet_v2", *(f"features.{idx}" for idx in range(1, 18))),
    _torchvision("mobilenet_v3_small", *(f"features.{idx}" for idx in range(1, 12))),
    _torchvision("efficientnet_b0", *(f"features.{stage}.*" for stage in range(1, 8))),
    _torchvision("convnext_tiny", *(f"features.{stage}.*" for stage in (1, 3, 5, 7))),
    _torchvision("swin_t", *(f"features.{stage}.*" for stage in (1, 3, 5, 7))),
    _torchvision("vit_b_16", "encoder.layers.encoder_layer_*"),
    _torchvision("densenet121", "features.denseblock*", "features.transition*"),
    _torchvision("squeezenet1_1", *(f"features.{idx}" for idx in (3, 4, 6, 7, 9, 10, 11, 12))),
    _torchvision("googlenet", "inception*", init_weights=False),
    _torchvision("mnasnet0_5", *(f"layers.{stage}.*" for stage in range(8, 14))),
    _torchvision("regnet_y_400mf", "trunk_output.block*.block*-*"),
    _torchvision("shufflenet_v2_x0_5", "stage*.*"),
    _torchvision("vgg11", *(f"features.{idx}" for idx in (2, 5, 7, 10, 12, 15, 17, 20))),
    _timm("vit_tiny_patch16_224", "blocks.*"),
    _timm("resnet18d", "layer*.*"),
    _timm("efficientnet_b0", "blocks.*.*"),
    _timm("mobilenetv3_small_050", *(f"blocks.{stage}.*" for stage in range(5))),
    _timm("convnext_atto", "stages.*.blocks.*"),
    _timm("swin_tiny_patch4_window7_224", "layers.*.blocks.*"),
    _timm("mixer_s32_224", "blocks.*"),
    _timm("poolformer_s12", "stages.*.blocks.*"),
    _timm("repvgg_a0", "stages.*.*"),
    _timm("ghostnet_100", *(f"blocks.{stage}.*" for stage in range(9))),
    _timm("pit_ti_224", "transformers.*.blocks.*"),
    _timm("xcit_nano_12_p16_224", "blocks.*", "cls_attn_blocks.*"),
    _timm("coatnet_nano_rw_224", "stages.*.blocks.*"),
    _timm("fastvit_t8", "stages.*.blocks.*"),
    _timm("edgenext_xx_small", "stages.*.blocks.*"),
    _transformers("Bert", "SequenceClassification", "bert.encoder.layer.*", **_ENCODER),
    _transformers(
        "DistilBert", "SequenceClassification", "distilbert.transformer.layer.*", dim=32, n_layers=3, n_heads=2
    ),
    _transformers("GPT2", "CausalLM", "transformer.h.*", n_embd=32, n_layer=3, n_head=2),
    _transformers("Llama", "CausalLM", "model.layers.*", **_ENCODER),
    _transformers(
        "T5",
        "Seq2SeqLM",
        "encoder.block.*",
        "decoder.block.*",
        miss="the encoder's output enters every block of the decoder, so that data never narrows to one tensor",
        d_model=32,
        d_ff=64,
        num_layers=2,
        num_heads=2,
    ),
    _transformers("ViT", "ImageClassification", "vit.layers.*", read=images, **_ENCODER),
    _transformers("ConvNextV2", "ImageClassification", "convnextv2.encoder.stages.*.layers.*", read=images),
    _space("nas_bench_201", 32),
    _space("nas_bench_101", 32),
    _space("transnas_micro", 64),
    _space("transnas_macro", 64),
    _space("nats_bench_size", 32),
    _space("plainnet", 64, miss="the space names the stem and the last convolution as well"),
    _space("autoformer_tiny", 224),
]


def _listed(network: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    expressions = [re.compile(re.escape(pattern).replace(r"\*", r"\d+[a-z]?")) for pattern in patterns]
    return [name for name, _ in network.named_modules() if any(e.fullmatch(name) for e in expressions)]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reader_would_list_the_same_blocks(case: Case, request: pytest.FixtureRequest) -> None:
    def step(net: nn.Module, batch: Tensor, _: int) -> Tensor:
        output = net(batch)
        return (output[0] if isinstance(output, tuple) else output).float().sum()

    if case.miss:
        request.applymarker(pytest.mark.xfail(strict=True, reason=case.miss))
    network = case.build()
    assert Anatomy(network, step, [case.inputs()]).blocks == _listed(network, case.listed)
