"""Representations without labels: two views, teachers, prototypes, episodes."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from tests.contracts.modules.registry import NUM_CLASSES, NUM_SAMPLES, Trained, batches, labels, ordinary

SIZE = 12
PROJECTED = 6


def two_views(g: Generator) -> Any:
    x = torch.randn(NUM_SAMPLES, SIZE, generator=g)
    views = [x + 0.1 * torch.randn(NUM_SAMPLES, SIZE, generator=g) for _ in range(2)]
    return views, torch.arange(NUM_SAMPLES)


views = batches(two_views)


def encoder_of(width: int, out_features: int = PROJECTED) -> nn.Sequential:
    return nn.Sequential(nn.Linear(SIZE, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out_features))


def encoder_macs(w: int) -> int:
    return SIZE * w + w * PROJECTED


def frozen_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float = 0.9) -> None:
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.data = momentum * slow.data + (1 - momentum) * fast.data


@ordinary(views, lambda w: 2 * encoder_macs(w) + 2 * 2 * NUM_SAMPLES * PROJECTED)
class SimCLR(Trained):
    """Each view is to find its twin among all views of the batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = encoder_of(width)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (a, b), _ = batch
        z = F.normalize(torch.cat([self.encoder(a), self.encoder(b)]), dim=1)
        logits = z @ z.T / 0.5
        logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -1e9)
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(a)))


@ordinary(views, lambda w: 4 * encoder_macs(w) + 2 * 2 * PROJECTED * w)
class BYOL(Trained):
    """Predicts what a teacher says that follows the student slowly."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.student = encoder_of(width)
        self.predictor = nn.Sequential(nn.Linear(PROJECTED, width), nn.ReLU(), nn.Linear(width, PROJECTED))
        self.teacher = frozen_copy(self.student)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        follow(self.teacher, self.student)
        (a, b), _ = batch
        loss = 0.0
        for x, y in ((a, b), (b, a)):
            with torch.no_grad():
                target = self.teacher(y)
            loss = loss - F.cosine_similarity(self.predictor(self.student(x)), target).mean()
        return loss


@ordinary(views, lambda w: 2 * encoder_macs(w) + PROJECTED * 16, comparable=False)
class MoCo(Trained):
    """Tells its twin from a queue of what was seen before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = encoder_of(width)
        self.key = frozen_copy(self.query)
        self.register_buffer("queue", F.normalize(torch.randn(16, PROJECTED), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        follow(self.key, self.query, 0.99)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (a, b), _ = batch
        q = F.normalize(self.query(a), dim=1)
        with torch.no_grad():
            k = F.normalize(self.key(b), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], 1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))
        self.queue = self.queue.clone()
        self.queue[(self.place + torch.arange(len(k), device=k.device)) % 16] = k
        self.place = (self.place + len(k)) % 16
        return loss


@ordinary(views, lambda w: 2 * encoder_macs(w) + PROJECTED * PROJECTED)
class BarlowTwins(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, self.norm = encoder_of(width), nn.BatchNorm1d(PROJECTED, affine=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = (self.norm(self.encoder(x)) for x in batch[0])
        correlation = a.T @ b / len(a)
        error = (correlation - torch.eye(PROJECTED, device=a.device)).square()
        return error.diagonal().sum() + 5e-3 * (error.sum() - error.diagonal().sum())


@ordinary(views, lambda w: 2 * encoder_macs(w) + 2 * PROJECTED * PROJECTED)
class VICReg(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = encoder_of(width)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = (self.encoder(x) for x in batch[0])
        loss = 25 * F.mse_loss(a, b)
        for z in (a, b):
            z = z - z.mean(0)
            covariance = z.T @ z / (len(z) - 1)
            loss = loss + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
            loss = loss + (covariance - covariance.diagonal().diag()).square().sum() / PROJECTED
        return loss


@ordinary(views, lambda w: 2 * (encoder_macs(w) + 2 * PROJECTED * w))
class SimSiam(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = encoder_of(width)
        self.predictor = nn.Sequential(nn.Linear(PROJECTED, width), nn.BatchNorm1d(width), nn.ReLU())
        self.out = nn.Linear(width, PROJECTED)
        self.criterion = nn.CosineSimilarity(dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        za, zb = (self.encoder(x) for x in batch[0])
        pa, pb = (self.out(self.predictor(z)) for z in (za, zb))
        return -0.5 * (self.criterion(pa, zb.detach()).mean() + self.criterion(pb, za.detach()).mean())


@ordinary(views, lambda w: 4 * encoder_macs(w), comparable=False)
class DINO(Trained):
    """A teacher whose outputs are centred, with a momentum that depends on how long training lasts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.student = encoder_of(width)
        self.teacher = frozen_copy(self.student)
        self.register_buffer("center", torch.zeros(PROJECTED))

    def on_train_start(self) -> None:
        self.momentum = 1 - 0.1 / self.trainer.estimated_stepping_batches

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        follow(self.teacher, self.student, self.momentum)
        seen = [self.student(x) for x in batch[0]]
        with torch.no_grad():
            said = [self.teacher(x) for x in batch[0]]
            targets = [((x - self.center) / 0.05).softmax(1) for x in said]
            self.center.mul_(0.9).add_(0.1 * torch.cat(said).mean(0))
        pairs = ((targets[0], seen[1]), (targets[1], seen[0]))
        return sum(-(target * (x / 0.1).log_softmax(1)).sum(1).mean() for target, x in pairs)


@ordinary(views, lambda w: 2 * (encoder_macs(w) + PROJECTED * 4))
class SwAV(Trained):
    """Swaps codes between views; the prototypes do not learn in the first epoch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, self.prototypes = encoder_of(width), nn.Linear(PROJECTED, 4, bias=False)

    @torch.no_grad()
    def codes(self, scores: Tensor) -> Tensor:
        q = torch.exp(scores / 0.5)
        for _ in range(3):
            q = q / q.sum(0, keepdim=True)
            q = q / q.sum(1, keepdim=True)
        return q

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.prototypes.weight.requires_grad_(self.current_epoch > 0)
        a, b = (self.prototypes(F.normalize(self.encoder(x), dim=1)) for x in batch[0])
        pairs = ((self.codes(a), b), (self.codes(b), a))
        return sum(-(code * (scores / 0.1).log_softmax(1)).sum(1).mean() for code, scores in pairs)


@ordinary(views, lambda w: 4 * (3 * w + w * w + w * 3), unweighted=["mask"])
class MaskedAutoencoder(Trained):
    """Sees two of four pieces and draws the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.mask = nn.Parameter(torch.randn(1, 1, width))
        self.mix = nn.Linear(width, width)
        self.decode = nn.Linear(width, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pieces = batch[0][0].unflatten(1, (4, 3))
        hidden = torch.tensor([False, True, False, True], device=self.device)
        x = torch.where(hidden[:, None], self.mask, self.embed(pieces))
        out = self.decode(F.gelu(self.mix(x)) + x.mean(1, keepdim=True))
        return F.mse_loss(out[:, hidden], pieces[:, hidden])


def turned(g: Generator) -> Any:
    return torch.randn(NUM_SAMPLES, 3, 8, 8, generator=g)


@ordinary(batches(turned), lambda w: 4 * (16 * 27 * w + w * 4))
class Rotations(Trained):
    """Makes four samples of one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = torch.cat([batch.rot90(turns, (2, 3)) for turns in range(4)])
        return F.cross_entropy(self.head(self.net(x)), torch.arange(4, device=x.device).repeat_interleave(len(batch)))


@ordinary(
    batches(lambda g: tuple(torch.randn(NUM_SAMPLES, SIZE, generator=g) for _ in range(3))),
    lambda w: 3 * encoder_macs(w),
)
class Triplets(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, self.criterion = encoder_of(width), nn.TripletMarginLoss(margin=1.0)

    def on_train_epoch_start(self) -> None:
        self.criterion.margin = 1.0 + 0.1 * self.current_epoch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.criterion(*(self.encoder(x) for x in batch))


def episode(g: Generator) -> Any:
    y = torch.arange(2).repeat(NUM_SAMPLES // 2)
    return {
        "support": (torch.randn(NUM_SAMPLES, SIZE, generator=g), y),
        "query": (torch.randn(NUM_SAMPLES, SIZE, generator=g), y),
    }


@ordinary(batches(episode), lambda w: 2 * encoder_macs(w) + 2 * PROJECTED)
class PrototypicalNet(Trained):
    """Compares queries with the mean of each class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = encoder_of(width)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x, y), (queries, wanted) = batch["support"], batch["query"]
        z = self.encoder(x)
        prototypes = torch.stack([z[y == label].mean(0) for label in range(2)])
        q = self.encoder(queries)
        logits = 2 * q @ prototypes.T - prototypes.square().sum(1)
        return F.cross_entropy(logits, wanted)


@ordinary(
    batches(episode),
    lambda w: (2 * (SIZE * w + w * 2), 5 * (SIZE * w + w * 2)),
)
class MAML(Trained):
    """Takes a step of its own inside the step, with respect to all parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(SIZE, width), nn.Tanh(), nn.Linear(width, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x, y), (queries, wanted) = batch["support"], batch["query"]
        params = dict(self.net.named_parameters())
        inner = F.cross_entropy(self.net(x), y)
        grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
        adapted = {name: p - 0.1 * grad for (name, p), grad in zip(params.items(), grads, strict=True)}
        return F.cross_entropy(functional_call(self.net, adapted, (queries,)), wanted)


@ordinary(
    batches(lambda g: (torch.randn(NUM_SAMPLES, SIZE, generator=g), labels(g))),
    lambda w: SIZE * w + w * PROJECTED + NUM_SAMPLES * PROJECTED + PROJECTED * NUM_CLASSES,
)
class SupervisedContrast(Trained):
    """Samples of one class are to be near each other, and a head learns beside without reaching the encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder_of(width), nn.Linear(PROJECTED, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        z = F.normalize(self.encoder(x), dim=1)
        same = (y[:, None] == y[None]).float().fill_diagonal_(0)
        log_prob = (z @ z.T / 0.5).fill_diagonal_(-1e9).log_softmax(1)
        contrast = -(same * log_prob).sum() / same.sum().clamp(min=1)
        return contrast + F.cross_entropy(self.head(z.detach()), y)
