"""Time series: forecasts of the next values, classes of whole series."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from tests.contracts.modules.registry import NUM_CLASSES, NUM_SAMPLES, Trained, batches, labels, ordinary

PAST, FUTURE = 12, 4


def univariate(g: Generator) -> Any:
    series = torch.randn(NUM_SAMPLES, PAST + FUTURE, generator=g).cumsum(1)
    return series[:, :PAST], series[:, PAST:]


class NBeatsBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.Linear(PAST, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.theta = nn.Linear(width, 6)
        powers = torch.arange(3.0)[:, None]
        self.register_buffer("backcast_basis", torch.linspace(0, 1, PAST) ** powers)
        self.register_buffer("forecast_basis", torch.linspace(1, 1.3, FUTURE) ** powers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        back, ahead = self.theta(self.stack(x)).split(3, -1)
        return back @ self.backcast_basis, ahead @ self.forecast_basis


@ordinary(batches(univariate), lambda w: 2 * (PAST * w + w * w + w * 6 + 3 * PAST + 3 * FUTURE))
class NBeats(Trained):
    """Each block explains what the ones before it left."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(NBeatsBlock(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        forecast = torch.zeros(len(x), FUTURE, device=x.device)
        for block in self.blocks:
            back, ahead = block(x)
            x, forecast = x - back, forecast + ahead
        return forecast

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mask = y.abs() < 10
        return ((self(x) - y).abs() * mask).sum() / mask.sum()


def frames(g: Generator) -> Any:
    known = torch.randn(NUM_SAMPLES, PAST, 3, generator=g, dtype=torch.float64)
    return {"past": known, "future": torch.randn(NUM_SAMPLES, FUTURE, generator=g, dtype=torch.float64)}


@ordinary(batches(frames), lambda w: PAST * 4 * w * (3 + w) + PAST * 4 * w * 2 * w + w * FUTURE * 3)
class QuantileLSTM(Trained):
    """Gets double precision from NumPy and casts it; forecasts three quantiles."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, FUTURE * 3)
        self.register_buffer("quantiles", torch.tensor([0.1, 0.5, 0.9]))

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x.float())
        return self.head(hidden[:, -1]).view(-1, FUTURE, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        error = batch["future"].float()[..., None] - self(batch["past"])
        return torch.maximum(self.quantiles * error, (self.quantiles - 1) * error).mean()


@ordinary(
    batches(lambda g: (torch.randn(NUM_SAMPLES, 3, PAST, generator=g), labels(g))),
    lambda w: PAST * (3 * 3 * w + 3 * w * w) + w * NUM_CLASSES,
    unweighted=["*original0"],
)
class TCN(Trained):
    """Causal convolutions under weight normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(3 if idx == 0 else width, width, 3, dilation=2**idx)) for idx in range(2)
        )
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        for idx, conv in enumerate(self.convs):
            x = F.relu(conv(F.pad(x, (2 * 2**idx, 0))))
        return F.cross_entropy(self.head(x[..., -1]), y)


@ordinary(batches(univariate), lambda w: 2 * (PAST * w + w * FUTURE))
class Decomposition(Trained):
    """A trend, a rest, and a network for each, as DLinear has them; scales are taken out of the window first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trend = nn.Sequential(nn.Linear(PAST, width), nn.Linear(width, FUTURE))
        self.rest = nn.Sequential(nn.Linear(PAST, width), nn.ReLU(), nn.Linear(width, FUTURE))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        x = (x - mean) / std
        trend = F.avg_pool1d(F.pad(x[:, None], (2, 2), mode="replicate"), 5, 1)[:, 0]
        forecast = (self.trend(trend) + self.rest(x - trend)) * std + mean
        return F.huber_loss(forecast, y)


@ordinary(
    batches(lambda g: (torch.randn(PAST, NUM_SAMPLES, 3, generator=g), torch.randn(NUM_SAMPLES, generator=g))),
    lambda w: PAST * 3 * w * (3 + w) + w,
)
class TimeFirst(Trained):
    """Time is dimension 0, as torch's recurrent layers have it by default."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, width), nn.Linear(width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        output, _ = self.gru(x)
        return F.mse_loss(self.head(output[-1]).squeeze(-1), y)


@ordinary(batches(univariate), lambda w: PAST * w * (1 + w) + w * 2 * FUTURE)
class DeepAR(Trained):
    """Forecasts a distribution; the loss is its likelihood."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, width, nonlinearity="tanh", batch_first=True)
        self.head = nn.Linear(width, 2 * FUTURE)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        scale = 1 + x.abs().mean(1, keepdim=True)
        _, hidden = self.rnn((x / scale)[..., None])
        mean, spread = self.head(hidden[-1]).chunk(2, -1)
        forecast = torch.distributions.Normal(mean * scale, F.softplus(spread) * scale + 1e-3)
        return -forecast.log_prob(y).mean()


class Windows(LightningDataModule):
    """Windows of one long series."""

    def setup(self, stage: str | None = None) -> None:
        series = torch.randn(60, generator=torch.Generator().manual_seed(0)).cumsum(0)
        windows = series.unfold(0, PAST + FUTURE, 2)
        self.scale = float(windows.std())
        self.data = TensorDataset(windows[:, :PAST], windows[:, PAST:])

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=NUM_SAMPLES, drop_last=True)

    def teardown(self, stage: str | None = None) -> None:
        self.data = None


@ordinary(
    Windows,
    lambda w: PAST * w + PAST * (4 * w * w + 2 * w * 2 * w) + 2 * PAST * PAST * w + PAST * w * FUTURE,
    unweighted=["position"],
)
class PatchTransformer(Trained):
    """Asks its data module for the scale of the data."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.position = nn.Parameter(0.02 * torch.randn(PAST, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(PAST * width, FUTURE)

    def setup(self, stage: str) -> None:
        self.scale = self.trainer.datamodule.scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = (part / self.scale for part in batch)
        x = self.encoder(self.embed(x[..., None]) + self.position)
        return F.mse_loss(self.head(x.flatten(1)), y)


@ordinary(
    batches(lambda g: (torch.randn(NUM_SAMPLES, 3, PAST, generator=g), labels(g))),
    lambda w: PAST * 3 * w + PAST * w * w + w * NUM_CLASSES,
    unweighted=["log_decay", "frequency", "input", "output"],
)
class StateSpace(Trained):
    """A linear recurrence with complex states, one step after the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, NUM_CLASSES)
        self.log_decay, self.frequency = nn.Parameter(torch.zeros(width, 4)), nn.Parameter(torch.randn(width, 4))
        self.input = nn.Parameter(torch.randn(width, 4, dtype=torch.complex64))
        self.output = nn.Parameter(torch.randn(width, 4, dtype=torch.complex64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        x = self.embed(x.mT)
        decay = torch.exp(torch.complex(-self.log_decay.exp(), self.frequency))
        state = torch.zeros(*x.shape[::2], 4, dtype=torch.complex64, device=x.device)
        outputs = []
        for step in x.unbind(1):
            state = decay * state + self.input * step[..., None]
            outputs.append((self.output * state).sum(-1).real)
        x = F.gelu(self.mix(torch.stack(outputs, 1)))
        return F.cross_entropy(self.head(x.mean(1)), y)


@ordinary(
    batches(lambda g: torch.randn(NUM_SAMPLES, PAST, 3, generator=g)),
    lambda w: PAST * 3 * 16 + 6 * 3 * 16 * w + 6 * w * 16 * 4 + PAST * 16 * 3 * 3,
)
class SequenceAutoencoder(Trained):
    """Takes a bare tensor and gives it back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(3, 16, 1), nn.ELU(), nn.Conv1d(16, width, 3, stride=2, padding=1))
        self.decoder = nn.Sequential(
            *(nn.ELU(), nn.ConvTranspose1d(width, 16, 4, stride=2, padding=1), nn.ELU(), nn.Conv1d(16, 3, 3, padding=1))
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch.mT
        return F.mse_loss(self.decoder(self.encoder(x)), x)
