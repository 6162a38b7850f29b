"""Choose a pretrained network for new images: by its features and what is known of it, then by fine-tuning the first.

The networks are pretrained here on the digits from 0 to 4. The new images are digits from 5 to 9, of which 100 train.

Usage:
    python examples/08_choose_pretrained.py
"""

from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_zico import Candidate, ZeroShotSelector
from lightning_zico.zoo import ImageClassifier

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def cnn(width: int) -> nn.Sequential:
    """Build an untrained network for five classes."""
    first = (nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(8 * width, 5))


def loaders(images: Tensor, labels: Tensor, num_train: int) -> list[DataLoader]:
    """Split images into a training set and the rest."""
    parts = random_split(TensorDataset(images.float() / 16, labels), [num_train, len(labels) - num_train])
    return [DataLoader(part, batch_size=20, shuffle=part is parts[0]) for part in parts]


def tuned(weights: dict[str, Tensor], width: int) -> ImageClassifier:
    """Build a network with pretrained weights and a fresh head, which is trained first and faster than the body."""
    network = cnn(width)
    network.load_state_dict(weights)
    network[-1].reset_parameters()
    return ImageClassifier(network, 5, lr=1e-2, body_lr_factor=0.1, head_epochs=1)


if __name__ == "__main__":
    seed_everything(0, verbose=False)
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    images, is_new, accuracies, candidates = images.view(-1, 1, 8, 8), labels >= 5, {}, []
    for width, epochs in ((8, 20), (16, 20), (32, 20), (32, 1)):
        name, network, trainer = f"{width}-wide-{epochs}-epochs", cnn(width), Trainer(max_epochs=epochs, **QUIET)
        trainer.fit(ImageClassifier(network, 5), *loaders(images[~is_new], labels[~is_new], 700))
        accuracies[name] = 100 * float(trainer.callback_metrics["val_acc"])
        candidates.append(Candidate(name, partial(tuned, network.state_dict(), width), pretrained=True))
    trainer, proxies = Trainer(max_epochs=12, **QUIET), ["transfer", "ridge_probe"]
    finals = {"finalists": 2, "final_epochs": 6, "monitor": "val_acc", "mode": "max"}
    selector = ZeroShotSelector(trainer, proxies, prior=accuracies, **finals)
    print(selector.fit(candidates, *loaders(images[is_new], labels[is_new] - 5, 100)).leaderboard_)
    print(f"{selector.leaderboard_.best}, fine-tuned: accuracy {float(trainer.callback_metrics['val_acc']):.3f}")
