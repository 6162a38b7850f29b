"""Features are what a forward pass in evaluation mode makes of every sample, once, wherever the samples come from."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_zico import score
from lightning_zico.engine.features import Features, FeatureSource
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NonFiniteError, NotApplicableError, SkippedBatchError, UnknownNameError
from tests.modules import assert_untouched, make_batches, make_network
from tests.proxies.models import Tokens, ViT


def step(module: nn.Module, batch: Any, batch_idx: int) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


DEFAULT = FeatureSource()


def features_of(
    module: nn.Module, batches: Any, source: FeatureSource = DEFAULT, step: Any = step, **options: Any
) -> Features:
    return Probe(module, step, batches[:2], transfer_batches=batches, **options).once(source)


def images(count: int = 12) -> tuple[Tensor, Tensor]:
    return make_batches(1, count)[0]


def in_batches(samples: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(size) for tensor in samples), strict=True))


@torch.no_grad()
def evaluated(module: nn.Module, inputs: Tensor) -> Tensor:
    was_training = module.training
    try:
        return module.eval()(inputs).double()
    finally:
        module.train(was_training)


def test_the_features_are_what_goes_into_the_head_in_evaluation_mode() -> None:
    module, (inputs, labels) = make_network(dropout=0.5), images()
    found = features_of(module, in_batches((inputs, labels), 4))
    torch.testing.assert_close(found.rows, evaluated(module[:6], inputs))
    assert found.head is not None
    assert torch.equal(found.head.inputs, found.rows)
    torch.testing.assert_close(found.head.outputs, evaluated(module, inputs))
    assert (found.head.name, found.head.is_last) == ("6", True)
    assert found.targets.tolist() == labels.tolist()
    assert found.details == {"features": "input of '6'", "num_samples": 12, "width": 4}


@pytest.mark.parametrize("size", [1, 5, 12])
def test_streamed_features_equal_those_of_one_batch(size: int) -> None:
    module, samples = make_network(dropout=0.5), images()
    whole, streamed = (features_of(module, in_batches(samples, n)) for n in (12, size))
    torch.testing.assert_close(streamed.rows, whole.rows, rtol=1e-5, atol=1e-6)
    names = ["hscore", "logme", "knn", "ridge_probe", "parc", "nleep", "transrate"]
    cards = [score(module, in_batches(samples, n), names, F.cross_entropy) for n in (12, size)]
    assert [cards[1][name].value for name in names] == pytest.approx([cards[0][name].value for name in names], rel=1e-4)


def test_features_of_a_frozen_model_are_the_same_and_nothing_changes() -> None:
    module, batches = make_network(dropout=0.5), in_batches(images(), 4)
    trainable = features_of(module, batches)
    module.requires_grad_(False)
    module[1].eval()
    with assert_untouched(module):
        frozen = features_of(module, batches)
    assert torch.equal(trainable.rows, frozen.rows)


SEEN: list[int] = []


def test_every_sample_passes_once_for_all_transfer_proxies_together() -> None:
    SEEN.clear()

    def counting(module: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        SEEN.append(len(batch[0]))
        return step(module, batch, batch_idx)

    names = ["hscore", "logme", "knn", "ridge_probe", "parc", "leep", "nce", "nleep", "transrate"]
    score(make_network(), in_batches(images(), 5), names, step=counting)
    assert SEEN == [5, 5, 2]


class ConvHead(nn.Module):
    """As SqueezeNet's: a convolution puts out the classes at each position, which are then averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 7, 3), nn.Conv2d(7, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).relu()).mean((2, 3))


def test_a_head_that_is_a_convolution_has_the_mean_over_positions_for_input() -> None:
    module, samples = ConvHead(), images()
    found = features_of(module, in_batches(samples, 12))
    torch.testing.assert_close(found.rows, evaluated(module.body, samples[0]).relu().mean((2, 3)))


def test_a_submodule_can_be_named_instead_of_the_head() -> None:
    module, samples = make_network(), images()
    found = features_of(module, in_batches(samples, 4), FeatureSource(module="0"))
    torch.testing.assert_close(found.rows, evaluated(module[0], samples[0]).mean((2, 3)))
    assert found.details["features"] == "output of '0'"
    with pytest.raises(UnknownNameError, match="body"):
        features_of(module, in_batches(samples, 4), FeatureSource(module="body"))


def test_the_mean_over_blocks_is_that_of_their_outputs_and_the_default_for_tokens() -> None:
    torch.manual_seed(0)
    module, labels = Tokens(), torch.arange(6) % 3
    tokens = torch.randint(10, (6, 5))
    first = module.layers[0].eval()(module.embedding(tokens))
    second = module.layers[1].eval()(first)
    module.train()
    found = features_of(module, [(tokens, labels)])
    torch.testing.assert_close(found.rows, ((first + second) / 2).mean(1).detach().double())
    assert found.details["features"] == "mean of 2 blocks"
    last = features_of(module, [(tokens, labels)], FeatureSource("last"))
    torch.testing.assert_close(last.rows, second.mean(1).detach().double())


def test_images_have_the_head_s_input_by_default_and_blocks_on_request() -> None:
    module = ViT()
    samples = torch.randn(6, 2, 6, 6), torch.arange(6) % 3
    assert features_of(module, [samples]).details["features"] == "input of 'head'"
    assert features_of(module, [samples], FeatureSource("mean")).details["features"] == "mean of 2 blocks"
    with pytest.raises(NotApplicableError, match="two blocks of equal width"):
        features_of(make_network(), in_batches(images(), 12), FeatureSource("mean"))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embedding(input_ids))[:, 0]  # a class for each step, of which the first counts


def test_padding_is_no_part_of_the_mean_over_steps() -> None:
    module = Masked()
    batch = {
        "input_ids": torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        "labels": torch.tensor([0, 1]),
    }
    found = features_of(module, [batch], step=lambda m, b, i: F.cross_entropy(m(b["input_ids"]), b["labels"]))
    expected = torch.stack([module.embedding.weight[[1, 2]].mean(0), module.embedding.weight[[3, 4, 5, 6]].mean(0)])
    torch.testing.assert_close(found.rows, expected.detach().double())


def test_labels_are_the_numbers_that_the_network_does_not_read() -> None:
    module = nn.Linear(1, 2)
    inputs, labels = torch.arange(6.0), torch.tensor([0, 1, 1, 0, 1, 0])

    def of_scalars(m: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(m(batch["x"].unsqueeze(1)), batch["y"])

    for batch in ({"x": inputs, "y": labels}, {"y": labels, "x": inputs}):
        assert features_of(module, [batch], step=of_scalars).targets.tolist() == labels.tolist()


@pytest.mark.parametrize("order", list(itertools.permutations(["x", "y", "domain"])))
def test_a_number_per_sample_that_the_step_does_not_read_is_no_label(order: tuple[str, ...]) -> None:
    inputs, labels = images()
    fields = {"x": inputs, "y": labels, "domain": torch.arange(12) % 2}
    batch = {name: fields[name] for name in order}

    def of_fields(m: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(m(batch["x"]), batch["y"])

    module = make_network()
    assert features_of(module, [batch], step=of_fields).targets.tolist() == labels.tolist()
    card = score(module, [batch] * 2, ["epe_nas"], step=of_fields)
    as_pair = score(module, [(inputs, labels)] * 2, ["epe_nas"], step=step)
    assert card["epe_nas"].value == as_pair["epe_nas"].value is not None


def test_a_number_per_sample_beside_several_labels_is_no_label() -> None:
    inputs, _ = images()
    batch = {"x": inputs, "labels": F.one_hot(torch.arange(12) % 3).float(), "domain": torch.arange(12) % 2}

    def several(m: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(m(batch["x"]), batch["labels"])

    card = score(make_network(), [batch] * 2, ["logme", "epe_nas"], step=several)
    assert str(card["logme"].error).startswith("not applicable: the batches have no class")
    assert str(card["epe_nas"].error).startswith("not applicable: the batch has no class labels")


@pytest.mark.parametrize("weights", [torch.arange(12) % 2 + 1, torch.arange(1.0, 13.0)])
def test_of_two_numbers_per_sample_that_the_loss_reads_neither_is_taken_for_the_label(weights: Tensor) -> None:
    def weighted(m: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        return (F.cross_entropy(m(batch[0]), batch[1], reduction="none") * batch[2]).mean()

    card = score(make_network(), [(*images(), weights)] * 2, ["logme", "knn"], step=weighted)
    assert all(str(card[name].error).startswith("not applicable: 2 fields of a batch have one num") for name in card)


def test_boxes_are_no_labels_even_where_an_image_has_as_many_as_there_are_images() -> None:
    def of_boxes(m: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        outputs = m(torch.stack(batch[0]))
        return torch.stack([F.cross_entropy(outputs[:2], image["labels"]) for image in batch[1]]).mean()

    inputs, _ = images(2)
    batch = (list(inputs), [{"labels": torch.tensor([0, 1])}, {"labels": torch.tensor([1, 1])}])
    card = score(make_network(), [batch] * 2, ["logme", "knn"], step=of_boxes)
    assert all(str(card[name].error).startswith("not applicable: the batches have no class") for name in card)


def test_samples_without_a_class_are_left_out() -> None:
    module, (inputs, labels) = make_network(), images()
    labels[[2, 5]] = -100
    found = features_of(module, in_batches((inputs, labels), 4))
    kept = labels >= 0
    torch.testing.assert_close(found.rows, evaluated(module[:6], inputs)[kept])
    assert found.targets.tolist() == labels[kept].tolist()
    assert found.head is not None
    assert len(found.head.inputs) == len(found.head.outputs) == 10


def test_two_classes_may_be_written_as_zero_and_one() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(50, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    inputs, _ = images()
    labels = torch.arange(12.0) % 2
    found = features_of(
        module, [(inputs, labels)], step=lambda m, b, i: F.binary_cross_entropy_with_logits(m(b[0]), b[1])
    )
    assert found.has_classes
    assert found.details["features"] == "input of '3'"
    assert found.targets.tolist() == labels.long().tolist()


def targets_of(kind: str) -> Tensor:
    return {
        "segmentation": torch.zeros(12, 5, 5).long(),
        "several labels": torch.zeros(12, 3),
        "none": torch.zeros(12, 2, 5, 5),
    }[kind]


@pytest.mark.parametrize("kind", ["segmentation", "several labels", "none"])
def test_data_without_one_label_per_sample_has_no_transfer_scores(kind: str) -> None:
    batches = [(images()[0], targets_of(kind))] * 2
    card = score(make_network(), batches, ["logme", "knn"], step=lambda m, b, i: m(b[0]).mean() + 0 * b[1].sum())
    assert all(str(card[name].error).startswith("not applicable: the batches have no class") for name in card)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 50))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def test_without_a_head_the_reason_names_the_way_out() -> None:
    with pytest.raises(NotApplicableError, match="`features=`"):
        features_of(Functional(), in_batches(images(), 4))


def test_features_that_are_not_finite_are_refused() -> None:
    module = make_network()
    nn.init.constant_(module[0].weight, torch.inf)
    with pytest.raises(NonFiniteError):
        features_of(module, in_batches(images(), 4))


def test_batches_that_training_skips_are_left_out() -> None:
    def skipping(module: nn.Module, batch: Any, batch_idx: int) -> Any:
        if len(batch[0]) < 4:
            raise SkippedBatchError("too few")
        return step(module, batch, batch_idx)

    found = features_of(make_network(), in_batches(images(10), 4), step=skipping)
    assert len(found.rows) == 8


@pytest.mark.parametrize("change", ["one class", "three samples"])
def test_too_little_to_compare_is_a_reason(change: str) -> None:
    inputs, labels = images()
    samples = (inputs, torch.ones_like(labels)) if change == "one class" else (inputs[:3], torch.tensor([0, 1, 2]))
    result = score(make_network(), [samples], "knn", F.cross_entropy)["knn"]
    assert str(result.error).startswith("not applicable: ")
