"""Transfer scores against slow twins, scikit-learn and closed forms, and what they do not depend on."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import RidgeCV
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from lightning_zico import score
from lightning_zico.engine.spectra import thin_svd
from lightning_zico.errors import InvalidArgumentError, NotApplicableError
from lightning_zico.proxies import KNN, TransferProxy, resolve_proxies
from lightning_zico.proxies.hscore import h_score, ledoit_wolf_shrinkage
from lightning_zico.proxies.knn import is_right_by_neighbors
from lightning_zico.proxies.leep import leep_score
from lightning_zico.proxies.logme import logme_score
from lightning_zico.proxies.nce import nce_score
from lightning_zico.proxies.nleep import cluster_probabilities, farthest_first, nleep_score
from lightning_zico.proxies.parc import parc_score
from lightning_zico.proxies.ridge_probe import RELATIVE_PENALTIES, held_out_predictions, r_squared
from lightning_zico.proxies.transfer import one_hot
from lightning_zico.proxies.transrate import trans_rate
from tests.reference import transfer as slow

Formula = Callable[[Tensor, Tensor], float]


def knn_accuracy(features: Tensor, labels: Tensor) -> float:
    return 100 * float(is_right_by_neighbors(features, labels, 5).double().mean())


def probe_accuracy(features: Tensor, labels: Tensor) -> float:
    predictions = held_out_predictions(features, one_hot(labels)).predictions
    return 100 * float((predictions.argmax(1) == one_hot(labels).argmax(1)).double().mean())


FORMULAS: dict[str, Formula] = {
    "hscore": h_score,
    "logme": lambda features, labels: logme_score(features, one_hot(labels)),
    "knn": knn_accuracy,
    "ridge_probe": probe_accuracy,
    "parc": parc_score,
    "nleep": nleep_score,
    "transrate": trans_rate,
}
WITH_SHIFT = {"logme"}  # its linear model has no intercept


def samples(
    seed: int, count: int = 40, width: int = 6, num_classes: int = 3, signal: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Make Gaussian classes whose means are ``signal`` from the origin, in axes of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
    means = signal * torch.randn(num_classes, width, generator=generator, dtype=torch.float64)
    return (noise + means[labels]) * torch.linspace(0.5, 2, width, dtype=torch.float64), labels


def rotation(width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q


@pytest.mark.parametrize("width", [1, 6, 60], ids=lambda width: f"{width} of 40")
@pytest.mark.parametrize("name", slow.BY_NAME)
def test_equals_its_twin(name: str, width: int) -> None:
    features, labels = samples(0, width=width)
    if name == "parc" and width == 1:
        with pytest.raises(NotApplicableError, match="vary along 1 axes"):
            parc_score(features, labels)
        return
    if name == "hscore" and width == 1:
        expected = 1 - sum(features[labels == y].var(correction=0) * (labels == y).sum() for y in range(3)) / (
            features.var(correction=0) * len(features)
        )  # one axis has nothing to be shrunk to, and leaves the share of variance between classes
        assert h_score(features, labels) == pytest.approx(float(expected))
        return
    # The twin of logme searches up to 1e-9 of the evidence of 40 samples.
    expected = slow.BY_NAME[name](features.numpy(), labels.numpy())
    assert FORMULAS[name](features, labels) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("count", "width"), [(50, 3), (50, 50), (20, 80), (7, 1)])
def test_the_shrinkage_is_that_of_scikit_learn(count: int, width: int) -> None:
    features, _ = samples(1, count, width)
    rows = features - features.mean(0)
    expected = LedoitWolf().fit(features.numpy()).shrinkage_
    assert ledoit_wolf_shrinkage(rows, thin_svd(rows)[1]) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 99), st.integers(5, 40), st.integers(2, 50))
def test_the_h_score_is_between_zero_and_the_number_of_classes_less_one(seed: int, count: int, width: int) -> None:
    features, labels = samples(seed, count, width)
    assert 0 <= h_score(features, labels) <= 2 + 1e-9


def test_logme_of_numbers_equals_its_twin() -> None:
    features, _ = samples(2)
    targets = features[:, :1] - 2 * features[:, 1:2] + torch.cos(torch.arange(40.0).double()).unsqueeze(1)
    assert logme_score(features, targets) == pytest.approx(slow.logme(features.numpy(), targets.numpy()), rel=1e-6)


def test_logme_of_features_that_tell_nothing_is_the_likelihood_of_noise_alone() -> None:
    features = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    targets = torch.tensor([[1.0], [1.0], [2.0], [2.0]])  # orthogonal to the features
    expected = -0.5 * math.log(2 * math.pi * 2.5) - 0.5  # a Gaussian whose variance is the mean square, 10 / 4
    assert logme_score(features, targets) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("width", [3, 60])
def test_held_out_predictions_are_those_of_models_fitted_without_the_sample(width: int) -> None:
    features, labels = samples(3, width=width)
    targets = one_hot(labels)
    squares = thin_svd(features - features.mean(0))[1].square()
    penalties = [float(relative * squares.mean()) for relative in RELATIVE_PENALTIES]
    found = held_out_predictions(features, targets)
    expected = slow.ridge_predictions(features.numpy(), targets.numpy(), penalties)
    np.testing.assert_allclose(found.predictions.numpy(), expected, atol=1e-9)
    kept = "cv_results" if "store_cv_results" in RidgeCV().get_params() else "cv_values"  # until scikit-learn 1.5
    cv = RidgeCV(penalties, alpha_per_target=False, **{f"store_{kept}": True}).fit(features.numpy(), targets.numpy())
    assert found.penalty == pytest.approx(cv.alpha_)
    errors = getattr(cv, f"{kept}_")[..., penalties.index(cv.alpha_)]
    np.testing.assert_allclose((found.predictions - targets).square().numpy(), errors, atol=1e-9)


def test_r_squared_is_one_for_the_truth_and_zero_for_the_mean() -> None:
    targets = torch.tensor([1.0, 2.0, 6.0])
    assert r_squared(targets, targets) == 1
    assert r_squared(torch.full((3,), 3.0), targets) == 0


def test_leep_and_nce_equal_their_twins() -> None:
    outputs, labels = samples(4, width=5)
    source = outputs.softmax(1)
    assert leep_score(source, labels) == pytest.approx(slow.leep(source.numpy(), labels.numpy()))
    assert nce_score(source.argmax(1), labels) == pytest.approx(slow.nce(source.argmax(1).numpy(), labels.numpy()))


def test_leep_and_nce_have_closed_forms_at_both_ends() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert leep_score(torch.full((4, 7), 1 / 7), labels) == pytest.approx(-entropy)
    assert nce_score(torch.zeros(4).long(), labels) == pytest.approx(-entropy)
    assert leep_score(torch.eye(3)[[2, 2, 2, 0]], labels) == pytest.approx(0, abs=1e-15)
    assert nce_score(torch.tensor([2, 2, 2, 0]), labels) == 0


def test_the_mixture_is_that_of_scikit_learn_from_the_same_start() -> None:
    features, _ = samples(5, count=60, width=3, signal=6.0)
    found = cluster_probabilities(features, 3)
    starts = features[farthest_first(features, 3)].numpy()
    model = GaussianMixture(3, covariance_type="diag", means_init=starts, random_state=0)
    # The classes are far apart, so that both end in the same place.
    np.testing.assert_allclose(found.numpy(), model.fit(features.numpy()).predict_proba(features.numpy()), atol=1e-3)


def test_nleep_of_clusters_that_are_the_classes_is_zero() -> None:
    features, labels = samples(6, count=60, width=3, signal=1e4)
    assert nleep_score(features, labels) == pytest.approx(0, abs=1e-6)


def test_transrate_of_one_axis_has_a_closed_form() -> None:
    features = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]])  # of one length in all classes, and tr Z'Z = 1
    rate = 0.5 * math.log(1 + 1 / (4 * 1e-4))
    within = 0.5 * math.log(1 + 0.5 / (2 * 1e-4))
    assert trans_rate(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(rate - within)


@pytest.mark.parametrize("name", FORMULAS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.floats(1e-3, 1e3), st.sampled_from([4, 60]))
def test_neither_orthogonal_maps_nor_scale_nor_shift_nor_order_change_a_score(
    name: str, seed: int, scale: float, width: int
) -> None:
    features, labels = samples(seed, width=width)
    expected = FORMULAS[name](features, labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shift = 0.0 if name in WITH_SHIFT else 3.0
    changed = (scale * (features @ rotation(width, seed) + shift))[order]
    # In the same order: of classes with equally many neighbours, the smallest wins, as in scikit-learn.
    renamed = torch.tensor([3, 5, 7])[labels][order]
    # 1e-5: nleep stops at a gain of 1e-3, and rounding may move a cluster by as little
    assert FORMULAS[name](changed, renamed) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("seed", range(3))
def test_features_that_separate_the_classes_score_higher(name: str, seed: int) -> None:
    weak, strong = (FORMULAS[name](*samples(seed, count=60, signal=signal)) for signal in (0.0, 4.0))
    assert strong > weak


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


@pytest.mark.parametrize("num_classes", [3, 5])  # fewer than the head has, and as many
def test_leep_and_nce_read_a_head_that_is_said_to_be_that_of_the_checkpoint(num_classes: int) -> None:
    features, labels = samples(7, num_classes=num_classes)
    module, batches = network().double(), [(features, labels)]
    module.source_head = lambda: ("2", module[2])  # type: ignore[assignment, return-value]
    card = score(module, batches, ["leep", "nce"], nn.CrossEntropyLoss())
    outputs = module(features).detach()
    assert card["leep"].value == pytest.approx(slow.leep(outputs.softmax(1).numpy(), labels.numpy()))
    assert card["nce"].value == pytest.approx(slow.nce(outputs.argmax(1).numpy(), labels.numpy()))
    assert card["leep"].details["num_source_classes"] == 5


def errors_with(source_head: object, num_classes: int = 3) -> list[str]:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.source_head = network(), source_head

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layers(inputs)

    module = Network().double()
    card = score(module, [samples(7, num_classes=num_classes)], ["leep", "nce"], nn.CrossEntropyLoss())
    assert [card[name].value for name in card] == [None, None]
    return [str(card[name].error) for name in card]


@pytest.mark.parametrize("num_classes", [3, 4, 5])
def test_a_head_is_not_taken_for_pretrained_because_the_data_shows_fewer_classes(num_classes: int) -> None:
    """With four classes: a fresh head for five classes, of which the samples happen to show four."""
    assert all("not known which head" in error for error in errors_with(None, num_classes))


@pytest.mark.parametrize("other", [nn.Linear(6, 7), 7, "2", lambda inputs: inputs], ids=["layer", "int", "str", "step"])
def test_something_else_named_source_head_is_no_head_of_a_checkpoint(other: object) -> None:
    assert all("not applicable: it is not known which head" in error for error in errors_with(other))


@pytest.mark.parametrize("wrong", [lambda: nn.Linear(8, 7), lambda: ("2", 7), lambda: ("2", nn.Linear(8, 7), 0)])
def test_a_source_head_must_be_a_name_and_a_layer(wrong: Callable[[], object]) -> None:
    assert all("expected a pair of the name of the network's head" in error for error in errors_with(wrong))


def test_numbers_to_predict_have_an_r_squared_and_an_evidence_and_nothing_for_classes() -> None:
    features, _ = samples(8)
    targets = features[:, 0] - features[:, 1]
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)).double()
    names = ["ridge_probe", "logme", "hscore", "knn", "parc", "nleep", "transrate", "leep", "nce"]
    card = score(module, [(features, targets)], names, nn.MSELoss())
    hidden = module[1](module[0](features)).detach()
    assert card["ridge_probe"].value == pytest.approx(
        r_squared(held_out_predictions(hidden, targets.unsqueeze(1)).predictions[:, 0], targets)
    )
    assert card["logme"].value == pytest.approx(logme_score(hidden, targets.unsqueeze(1)))
    assert all(str(card[name].error).startswith("not applicable: the labels are numbers") for name in names[2:])


def test_a_standard_error_in_points_goes_with_an_accuracy() -> None:
    features, labels = samples(9, signal=0.5)
    card = score(network().double(), [(features, labels)], ["knn", "ridge_probe"], nn.CrossEntropyLoss())
    for name in card:
        result = card[name]
        share = result.value / 100
        assert result.details["standard_error"] == pytest.approx(100 * math.sqrt(share * (1 - share) / 40))


@pytest.mark.parametrize(
    "build",
    [
        lambda: KNN(0),
        lambda: KNN(layers="first"),  # type: ignore[arg-type]
        lambda: KNN(features=3),  # type: ignore[arg-type]
        lambda: KNN(features="0", layers="last"),
    ],
)
def test_wrong_arguments_are_refused(build: Callable[[], KNN]) -> None:
    with pytest.raises(InvalidArgumentError):
        build()


def test_all_transfer_proxies_say_what_they_need() -> None:
    found = [proxy for proxy in resolve_proxies("all") if isinstance(proxy, TransferProxy)]
    others = [proxy for proxy in resolve_proxies("all") if not isinstance(proxy, TransferProxy)]
    assert sorted(proxy.name for proxy in found) == sorted([*FORMULAS, "leep", "nce"])
    assert all(proxy.needs_labels and proxy.needs_features and proxy.needs_pretrained for proxy in found)
    assert not any(p.needs_features or p.needs_pretrained for p in others)
