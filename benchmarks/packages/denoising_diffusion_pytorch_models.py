"""denoising-diffusion-pytorch: a diffusion model that computes its own loss."""

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, GaussianDiffusion1D, Unet, Unet1D

from packages import Entry, Fitted, batches, images

PACKAGE = "denoising-diffusion-pytorch"


def _images(width):
    return GaussianDiffusion(Unet(dim=width, dim_mults=(1, 2)), image_size=16, timesteps=20)


def _sequences(width):
    return GaussianDiffusion1D(Unet1D(dim=width, dim_mults=(1, 2), channels=2), seq_length=16, timesteps=20)


def _loss(module, batch):
    return module.network(batch)


ENTRIES = (
    Entry("GaussianDiffusion", lambda w: Fitted(_images(w), _loss), batches(lambda g: images(g, 16, num_samples=4))),
    Entry(
        "GaussianDiffusion1D",
        lambda w: Fitted(_sequences(w), _loss),
        batches(lambda g: torch.rand(4, 2, 16, generator=g)),
    ),
)
