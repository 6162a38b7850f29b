"""Every proxy gives real architectures a number, or says why it does not apply."""

from typing import Any

import pytest

from lightning_zico import list_proxies
from lightning_zico.bridge import Reading
from lightning_zico.proxies import resolve_proxies
from lightning_zico.results import NOT_APPLICABLE, ScoreCard
from lightning_zico.scoring.checks import check_batches
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.zoo import from_zoo
from tests.zoo.data import NUM_CLASSES, image_batches, text_batches

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")

SIZE = 64
FAST = ("timm:mobilenetv3_small_050", "timm:test_vit", "torchvision:squeezenet1_1", "transformers:bert-tiny")
FAMILIES = {
    "resnet": "timm:resnet10t",
    "mobilenetv3": "timm:mobilenetv3_small_075",
    "efficientnet": "timm:efficientnet_lite0",
    "convnext": "timm:convnext_atto",
    "regnet": "timm:regnety_002",
    "vit": "timm:vit_tiny_patch16_224",
    "deit": "timm:deit_tiny_patch16_224",
    "swin": "timm:swin_tiny_patch4_window7_224",
    "mixer": "timm:mixer_s32_224",
    "xcit": "timm:xcit_nano_12_p16_224",
    "mobilevit": "timm:mobilevit_xxs",
    "levit": "timm:levit_128s",
    "poolformer": "timm:poolformer_s12",
    "pvt": "timm:pvt_v2_b0",
    "ghostnet": "timm:ghostnet_050",
    "repvgg": "timm:repvgg_a0",
    "densenet": "torchvision:densenet121",
    "shufflenet": "torchvision:shufflenet_v2_x0_5",
    "squeezenet": "torchvision:squeezenet1_0",
    "mnasnet": "torchvision:mnasnet0_5",
    "vgg": "torchvision:vgg11_bn",
    "transformers_vit": "transformers:vit-tiny",
    "transformers_resnet": "transformers:resnet-18",
    "bert": "transformers:bert-mini",
    "electra": "transformers:electra-small",
}


def card_of(spec: str) -> ScoreCard:
    options: dict[str, Any] = {"num_classes": NUM_CLASSES, "input_size": SIZE}
    if spec.startswith("transformers"):
        options["vocab_size"] = 40
    (candidate,) = from_zoo(spec, **options)
    is_text = type(candidate.build).__name__.endswith("TextModel")
    batches: list[Any] = text_batches(8) if is_text else list(image_batches(SIZE, 8))
    proxies = resolve_proxies("all")
    check_batches(batches, proxies, "batch")
    return Scorer(Reading.of(batches), proxies).score(candidate)


def assert_every_score_is_a_number_or_not_applicable(spec: str) -> None:
    card = card_of(spec)
    reasons = {name: str(card[name].error) for name in card if card[name].value is None}
    wrong = {name: reason for name, reason in reasons.items() if not reason.startswith(NOT_APPLICABLE)}
    assert card.error is None
    assert wrong == {}
    assert list(card) == list_proxies()
    for name in ("params", "macs", "zico", "grad_norm", "snip"):
        assert card[name].value is not None, name


@pytest.mark.parametrize("spec", FAST)
def test_every_proxy_on_small_models(spec: str) -> None:
    assert_every_score_is_a_number_or_not_applicable(spec)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_proxy_on_every_family(family: str) -> None:
    assert_every_score_is_a_number_or_not_applicable(FAMILIES[family])
