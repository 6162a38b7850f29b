"""Models that make data: adversarial pairs, autoencoders, flows, diffusion."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import spectral_norm

from tests.contracts.modules.registry import NUM_SAMPLES, Trained, batches, ordinary

LATENT = 3
SIZE = 6

vectors = batches(lambda g: (torch.randn(NUM_SAMPLES, SIZE, generator=g),))
images = batches(lambda g: {"image": torch.rand(NUM_SAMPLES, 1, 8, 8, generator=g)})


class Adversarial(Trained):
    """A generator and its critic, which optimise manually."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(LATENT, width), nn.ReLU(), nn.Linear(width, SIZE))
        self.critic = nn.Sequential(nn.Linear(SIZE, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def generated(self, x: Tensor) -> Tensor:
        return self.generator(x[:, :LATENT])

    def generator_loss(self, x: Tensor) -> Tensor:
        return F.softplus(-self.critic(self.generated(x))).mean()

    def critic_loss(self, x: Tensor) -> Tensor:
        fake = self.generated(x).detach()
        return F.softplus(-self.critic(x)).mean() + F.softplus(self.critic(fake)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (x,) = batch
        for optimizer, loss_of in zip(self.optimizers(), (self.critic_loss, self.generator_loss), strict=True):
            self.toggle_optimizer(optimizer)
            loss = loss_of(x)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.log(loss_of.__name__, loss)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=2e-4) for part in (self.critic, self.generator)], []


def generator_step(module: Any, batch: Any, batch_idx: int) -> Tensor:
    return module.generator_loss(batch[0])


def both_step(module: Any, batch: Any, batch_idx: int) -> Tensor:
    return module.generator_loss(batch[0]) + module.critic_loss(batch[0])


def pair_macs(w: int) -> int:
    return (LATENT * w + w * SIZE) + (SIZE * w + w)


@ordinary(vectors, pair_macs, step=generator_step)
class GAN(Adversarial):
    """Scored by what its generator loses."""


@ordinary(vectors, lambda w: 2 * (LATENT * w + w * SIZE) + 3 * (SIZE * w + w), step=both_step)
class HingeGAN(Adversarial):
    """Scored by the sum of both losses; the critic's is the hinge."""

    def critic_loss(self, x: Tensor) -> Tensor:
        fake = self.generated(x).detach()
        return F.relu(1 - self.critic(x)).mean() + F.relu(1 + self.critic(fake)).mean()


@ordinary(
    vectors,
    # The generator, the critic three times, and its gradient, which costs as much again at most.
    lambda w: ((LATENT * w + w * SIZE) + 3 * (SIZE * w + w), (LATENT * w + w * SIZE) + 6 * (SIZE * w + w)),
)
class GradientPenalty(Trained):
    """Trains a critic alone, whose gradient is to have norm 1 between real and generated samples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(LATENT, width), nn.ReLU(), nn.Linear(width, SIZE)).requires_grad_(
            False
        )
        self.critic = nn.Sequential(nn.Linear(SIZE, width), nn.SiLU(), nn.Linear(width, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        fake = self.generator(x[:, :LATENT])
        mean = ((x + fake) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mean).sum(), mean, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        self.log("penalty", penalty)
        return self.critic(fake).mean() - self.critic(x).mean() + 10 * penalty

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.critic.parameters(), lr=5e-5)


@ordinary(
    batches(lambda g: (torch.rand(NUM_SAMPLES, 1, 8, 8, generator=g), torch.randint(2, (NUM_SAMPLES, 1), generator=g))),
    # Power iteration multiplies each weight with two vectors, and once more for the norm, for the batch.
    lambda w: (16 * 9 * w + 16 * w, 16 * 9 * w + 16 * w + 3 * (9 * w + 16 * w) / NUM_SAMPLES + 1),
    comparable=False,
)
class SpectralCritic(Trained):
    """The old spectral normalisation, which keeps the weight under another name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv2d(1, width, 3, stride=2, padding=1))
        self.head = spectral_norm(nn.Linear(16 * width, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, real = batch
        out = self.head(F.leaky_relu(self.conv(x), 0.2).flatten(1))
        return F.relu(1 - (2 * real.float() - 1) * out).mean()


@ordinary(images, lambda w: 16 * 9 * w + 16 * w * 2 * LATENT + LATENT * 16 * w + 16 * w * 16, comparable=False)
class VAE(Trained):
    """Weighs one term by how far training has come."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.latent, self.start = nn.Linear(16 * width, 2 * LATENT), nn.Linear(LATENT, 16 * width)
        self.decoder = nn.ConvTranspose2d(width, 1, 4, 2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch["image"]
        mean, log_var = self.latent(self.encoder(x)).chunk(2, 1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        logits = self.decoder(F.relu(self.start(z)).unflatten(1, (-1, 4, 4)))
        done = (self.current_epoch * self.trainer.num_training_batches + batch_idx + 1) / (
            self.trainer.max_epochs * self.trainer.num_training_batches
        )
        assert 0 < done <= 1
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()
        loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        self.log_dict({"kl": kl, "beta": done})
        return loss + done * kl


class Coupling(nn.Module):
    """Half of the numbers scale and shift the other half."""

    def __init__(self, width: int, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(SIZE // 2, width), nn.Tanh(), nn.Linear(width, SIZE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        if self.flip:
            a, b = b, a
        log_scale, shift = self.net(a).chunk(2, 1)
        log_scale = torch.tanh(log_scale)
        return torch.cat([a, b * log_scale.exp() + shift], 1), log_scale.sum(1)


@ordinary(vectors, lambda w: 2 * (SIZE // 2 * w + w * SIZE))
class RealNVP(Trained):
    """A normalising flow, whose base distribution is kept in buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(width, flip) for flip in (False, True))
        self.register_buffer("mean", torch.zeros(SIZE))
        self.register_buffer("scale", torch.ones(SIZE))

    def log_prob(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), device=x.device)
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        base = torch.distributions.Independent(torch.distributions.Normal(self.mean, self.scale), 1)
        return base.log_prob(x) + total

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -self.log_prob(batch[0]).mean() / (SIZE * math.log(2))


class NoiseSchedule:
    """A plain object with tensors, as schedulers of diffusion models are."""

    def __init__(self, num_steps: int = 10) -> None:
        self.kept = torch.cumprod(1 - torch.linspace(1e-3, 0.2, num_steps), 0)

    def add_noise(self, x: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        self.kept = self.kept.to(x.device)
        kept = self.kept[step][:, None, None, None]
        return kept.sqrt() * x + (1 - kept).sqrt() * noise


@ordinary(
    images,
    lambda w: 64 * 9 * w + 64 * 9 * w * w + 64 * 9 * w + w * w,
    unweighted=["time.weight"],
    comparable=False,
)
class Diffusion(Trained):
    """Predicts the noise that was added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.schedule = NoiseSchedule()
        self.time, self.project = nn.Embedding(10, width), nn.Linear(width, width)
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.out = nn.GroupNorm(2, width), nn.Conv2d(width, 1, 3, padding=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = 2 * batch["image"] - 1
        noise, step = torch.randn_like(x), torch.randint(10, (len(x),), device=x.device)
        h = F.silu(self.first(self.schedule.add_noise(x, noise, step)))
        h = self.norm(self.second(h + self.project(self.time(step))[:, :, None, None]))
        return F.mse_loss(self.out(F.silu(h)), noise)


@ordinary(images, lambda w: 16 * 16 * w + 16 * w * 5 + 16 * w * 16, comparable=False)
class VQVAE(Trained):
    """The nearest of five codes, past which the gradient is passed; the codes follow a moving average."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, width, 4, 2, 1), nn.ConvTranspose2d(width, 1, 4, 2, 1)
        self.register_buffer("codes", torch.randn(5, width))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch["image"]
        z = self.encoder(x).movedim(1, -1)
        with torch.no_grad():
            nearest = (z @ self.codes.T - 0.5 * self.codes.square().sum(1)).argmax(-1)
            for code in range(5):
                if (nearest == code).any():
                    self.codes[code].lerp_(z[nearest == code].mean(0), 0.01)
        quantized = z + (self.codes[nearest] - z).detach()
        commitment = F.mse_loss(z, self.codes[nearest].detach().clone())
        return F.mse_loss(self.decoder(quantized.movedim(-1, 1)), x) + 0.25 * commitment


class MaskedLinear(nn.Linear):
    """Sees inputs before its own place only."""

    def __init__(self, degrees_in: Tensor, degrees_out: Tensor, strict: bool) -> None:
        super().__init__(len(degrees_in), len(degrees_out))
        allowed = degrees_out[:, None] > degrees_in if strict else degrees_out[:, None] >= degrees_in
        self.register_buffer("mask", allowed.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


@ordinary(vectors, lambda w: SIZE * w + w * 2 * SIZE)
class MADE(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        inputs, hidden = torch.arange(SIZE), torch.arange(width) % (SIZE - 1)
        self.first = MaskedLinear(inputs, hidden, strict=False)
        self.second = MaskedLinear(hidden, inputs.repeat(2), strict=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        mean, log_scale = self.second(F.elu(self.first(x))).chunk(2, 1)
        return (log_scale + 0.5 * ((x - mean) * torch.exp(-log_scale)).square()).sum(1).mean()


@ordinary(
    vectors,
    lambda w: (SIZE * w + w * w + w * SIZE, 3 * (SIZE * w + w * w + w * SIZE)),
)
class SlicedScore(Trained):
    """Score matching: differentiates what it predicts by its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(SIZE, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus(), nn.Linear(width, SIZE)
        )
        self.register_buffer("direction", F.normalize(torch.ones(SIZE), dim=0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].clone().requires_grad_(True)
        along = (self.net(x) * self.direction).sum(1)
        curvature = (torch.autograd.grad(along.sum(), x, create_graph=True)[0] * self.direction).sum(1)
        return (curvature + 0.5 * along.square()).mean()


def paired(g: Generator) -> Any:
    return torch.rand(NUM_SAMPLES, 1, 8, 8, generator=g), torch.rand(NUM_SAMPLES, 1, 8, 8, generator=g)


def translation_step(module: Any, batch: Any, batch_idx: int) -> Tensor:
    source, target = batch
    fake = module.generator(source)
    return F.l1_loss(fake, target) + F.mse_loss(module.critic(torch.cat([source, fake], 1)), torch.ones(()))


@ordinary(
    batches(paired),
    lambda w: 16 * 16 * w + 16 * 9 * w * w + 16 * w * 16 + 16 * 16 * 2 * w + 16 * w,
    step=translation_step,
)
class Pix2Pix(Trained):
    """Translates images; the critic judges patches of both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            *(
                nn.Conv2d(1, width, 4, 2, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, 1, 1),
                nn.InstanceNorm2d(width),
            ),
            *(nn.ReLU(), nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Sigmoid()),
        )
        self.critic = nn.Sequential(nn.Conv2d(2, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        source, target = batch
        first, second = self.optimizers()
        first.zero_grad()
        self.manual_backward(translation_step(self, batch, batch_idx))
        first.step()
        second.zero_grad()
        real, fake = (self.critic(torch.cat([source, x], 1)) for x in (target, self.generator(source).detach()))
        self.manual_backward(F.mse_loss(real, torch.ones_like(real)) + fake.square().mean())
        second.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=2e-4) for part in (self.generator, self.critic)], []
