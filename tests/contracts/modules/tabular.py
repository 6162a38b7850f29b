"""Tables: columns of numbers and of categories."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score

from tests.contracts.modules.registry import NUM_CLASSES, NUM_SAMPLES, Trained, batches, labels, ordinary

NUM_COLUMNS = 6


def numbers(g: Generator, columns: int = NUM_COLUMNS) -> Tensor:
    return torch.randn(NUM_SAMPLES, columns, generator=g)


def mixed(g: Generator) -> Any:
    categories = torch.stack([torch.randint(size, (NUM_SAMPLES,), generator=g) for size in (4, 7)], 1)
    return {"continuous": numbers(g), "categorical": categories, "target": torch.randn(NUM_SAMPLES, 1, generator=g)}


rows = batches(lambda g: (numbers(g), labels(g)))


class Table(Dataset):
    """Rows as dictionaries, numbers in double precision as pandas has them."""

    def __len__(self) -> int:
        return 2 * NUM_SAMPLES

    def __getitem__(self, idx: int) -> Any:
        g = torch.Generator().manual_seed(idx)
        return {"x": torch.randn(NUM_COLUMNS, generator=g).double().numpy(), "y": float(idx % 3)}


@ordinary(lambda: DataLoader(Table(), NUM_SAMPLES), lambda w: NUM_COLUMNS * w + w * w + w)
class DoubleMLP(Trained):
    """Casts what NumPy gives to its own precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(NUM_COLUMNS, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, 1),
        )
        self.seen = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        y = batch["y"].float()
        loss = F.mse_loss(self.net(batch["x"].float()).squeeze(), y)
        self.seen.update(loss)
        self.log("seen", self.seen)
        return loss


@ordinary(batches(mixed), lambda w: (NUM_COLUMNS + 3 + 3) * w + w * w + w, unweighted=["embeddings.*.weight"])
class CategoricalMLP(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 3) for size in (4, 7))
        self.net = nn.Sequential(
            *(nn.Linear(NUM_COLUMNS + 6, width), nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, 1))
        )

    def training_step(self, batch: Any, *args: Any) -> Tensor:
        categories = batch["categorical"].unbind(1)
        parts = [table(column) for table, column in zip(self.embeddings, categories, strict=True)]
        return F.smooth_l1_loss(self.net(torch.cat([batch["continuous"], *parts], 1)), batch["target"])


@ordinary(
    batches(mixed),
    lambda w: 9 * (4 * w * w + 2 * 9 * w + 2 * w * 2 * w) + w,
    unweighted=["weight", "bias", "tables.*.weight", "cls"],
)
class FTTransformer(Trained):
    """A token for each column and one to read from."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(NUM_COLUMNS, width)), nn.Parameter(torch.zeros(8, width))
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in (4, 7))
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        columns = [self.weight * batch["continuous"][..., None]]
        columns += [t(c)[:, None] for t, c in zip(self.tables, batch["categorical"].unbind(1), strict=True)]
        x = torch.cat(columns, 1) + self.bias
        x = self.block(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))
        return F.mse_loss(self.head(x[:, 0]), batch["target"])


class Decision(nn.Module):
    """A gated linear unit with a normalisation of small groups of samples."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_features, 2 * width, bias=False), nn.BatchNorm1d(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        groups = [self.norm(group) for group in self.linear(x).chunk(2)]
        return F.glu(torch.cat(groups))


@ordinary(rows, lambda w: 2 * (NUM_COLUMNS * 2 * w + w * NUM_COLUMNS) + NUM_COLUMNS * 2 * w + w * NUM_CLASSES)
class TabNet(Trained):
    """Chooses columns step by step and pays for using many."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.initial = Decision(NUM_COLUMNS, width)
        self.steps = nn.ModuleList(Decision(NUM_COLUMNS, width) for _ in range(2))
        self.attentive = nn.ModuleList(nn.Linear(width, NUM_COLUMNS) for _ in range(2))
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        hidden, prior, total, entropy = self.initial(x), torch.ones_like(x), 0.0, 0.0
        for step, attentive in zip(self.steps, self.attentive, strict=True):
            mask = torch.softmax(prior * attentive(hidden), -1)
            prior = prior * (1.3 - mask)
            hidden = step(mask * x)
            total = total + F.relu(hidden)
            entropy = entropy - (mask * torch.log(mask + 1e-6)).sum(1).mean()
        return {"loss": F.cross_entropy(self.head(total), y) + 1e-2 * entropy, "entropy": entropy.detach()}


@ordinary(rows, lambda w: NUM_COLUMNS * 3 + 2 * (NUM_COLUMNS * w + w * NUM_CLASSES))
class MixtureOfExperts(Trained):
    """Sends each row to two of three experts; how many each gets depends on the values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(NUM_COLUMNS, 3, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(NUM_COLUMNS, width), nn.GELU(), nn.Linear(width, NUM_CLASSES)) for _ in range(3)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        gates, chosen = self.router(x).softmax(-1).topk(2)
        logits = torch.zeros(len(x), NUM_CLASSES, device=x.device)
        for idx, expert in enumerate(self.experts):
            row, place = torch.where(chosen == idx)
            if len(row):
                logits = logits.index_add(0, row, gates[row, place, None] * expert(x[row]))
        return F.cross_entropy(logits, y)


@ordinary(
    batches(lambda g: (numbers(g), (torch.rand(NUM_SAMPLES, 4, generator=g) < 0.5).float())),
    lambda w: NUM_COLUMNS * w + w * w + w * 4,
)
class MultiLabel(Trained):
    """Floats as targets, which metrics check to be labels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(NUM_COLUMNS, width), nn.SELU(), nn.Linear(width, width), nn.SELU())
        self.head = nn.Linear(width, 4)
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=torch.full((4,), 2.0))
        self.metrics = MetricCollection([MultilabelAccuracy(4), MultilabelF1Score(4)], prefix="train_")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.head(self.net(x))
        self.log_dict(self.metrics(logits.sigmoid(), y.int()), on_step=False, on_epoch=True)
        return self.criterion(logits, y)


@ordinary(
    batches(
        lambda g: (numbers(g), torch.rand(NUM_SAMPLES, generator=g), torch.randint(2, (NUM_SAMPLES,), generator=g))
    ),
    lambda w: NUM_COLUMNS * w + w * w + w,
)
class CoxSurvival(Trained):
    """Compares each sample with those that lived longer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(NUM_COLUMNS, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.risk = nn.Linear(width, 1, bias=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, time, event = batch
        risk = self.risk(self.net(x)).squeeze(-1)[time.argsort(descending=True)]
        event = event[time.argsort(descending=True)].float()
        return -((risk - torch.logcumsumexp(risk, 0)) * event).sum() / event.sum().clamp(min=1)


def ratings(g: Generator) -> Any:
    users, items = (torch.randint(size, (NUM_SAMPLES,), generator=g) for size in (9, 11))
    return users, items, torch.randint(1, 6, (NUM_SAMPLES,), generator=g).float()


@ordinary(batches(ratings), lambda w: 2 * w * w + w * 4 + 4, unweighted=["users.weight", "items.weight"])
class NeuralCF(Trained):
    """Two tables, their product and a network beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, width), nn.Embedding(11, width)
        self.deep = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        users, items, rating = batch
        u, i = self.users(users), self.items(items)
        return F.mse_loss((u * i).sum(1) + self.deep(torch.cat([u, i], 1)).squeeze(1), rating)


@ordinary(
    batches(lambda g: (numbers(g), labels(g, 4))),
    lambda w: NUM_COLUMNS * w + w * w + w,
    unweighted=["cuts"],
)
class OrdinalRegression(Trained):
    """One number and the places where it is cut; the step takes the batch alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(NUM_COLUMNS, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.score = nn.Linear(width, 1)
        self.cuts = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]))

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        logits = self.score(self.net(x)) - self.cuts
        levels = (y[:, None] > torch.arange(3, device=x.device)).float()
        return F.binary_cross_entropy_with_logits(logits, levels)


@ordinary(
    batches(lambda g: (numbers(g), labels(g)), num_batches=3),
    lambda w: NUM_COLUMNS * w + w * NUM_CLASSES,
    num_batches=3,
)
class SkipsBatches(Trained):
    """Has no loss for some batches, which Lightning skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(NUM_COLUMNS, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        if batch_idx == 1:
            return None
        return F.cross_entropy(self.net(batch[0]), batch[1])
