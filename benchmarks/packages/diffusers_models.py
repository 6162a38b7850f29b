"""diffusers: networks that predict noise, and an autoencoder."""

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, UNet1DModel, UNet2DModel

from packages import NUM_SAMPLES, Entry, Fitted, batches, images, labels

PACKAGE = "diffusers"


class _Denoiser(Fitted):
    """As in the package's example of training; the scheduler is a plain object."""

    def __init__(self, network, **given):
        super().__init__(network, lambda module, batch: module.noise_loss(*batch))
        self.scheduler = DDPMScheduler(num_train_timesteps=100)
        self.given = given

    def noise_loss(self, x, y):
        noise = torch.randn_like(x)
        steps = torch.randint(self.scheduler.config.num_train_timesteps, (len(x),), device=x.device)
        noisy = self.scheduler.add_noise(x, noise, steps)
        options = {"class_labels": y} if self.given else {}
        return F.mse_loss(self.network(noisy, steps, **options).sample, noise)


def _unet(width):
    return UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )


def _unet1d(width):
    return UNet1DModel(
        sample_size=32,
        in_channels=2,
        out_channels=2,
        extra_in_channels=width,
        flip_sin_to_cos=True,
        use_timestep_embedding=False,
        time_embedding_type="positional",
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )


def _dit(width):
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=width // 2,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        sample_size=16,
        patch_size=4,
        num_embeds_ada_norm=4,
        norm_num_groups=1,
    )


def _autoencoder(width):
    return AutoencoderKL(
        block_out_channels=(width, 2 * width),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=2,
    )


def _reconstruction(module, batch):
    posterior = module.network.encode(batch[0]).latent_dist
    return F.mse_loss(module.network.decode(posterior.sample()).sample, batch[0]) + 1e-6 * posterior.kl().mean()


_data = batches(lambda g: (2 * images(g, 16) - 1, labels(g)))

ENTRIES = (
    Entry("UNet2DModel", lambda w: _Denoiser(_unet(w)), _data),
    Entry(
        "UNet1DModel",
        lambda w: _Denoiser(_unet1d(w)),
        batches(lambda g: (torch.randn(NUM_SAMPLES, 2, 32, generator=g), labels(g))),
        small=32,
        big=64,
    ),
    Entry("DiTTransformer2DModel", lambda w: _Denoiser(_dit(w), class_labels=True), _data),
    Entry("AutoencoderKL", lambda w: Fitted(_autoencoder(w), _reconstruction), _data),
)
