"""gpytorch: Gaussian processes, alone and on top of a network."""

import gpytorch
import torch
from torch import nn

from packages import NUM_SAMPLES, Entry, Fitted, batches

PACKAGE = "gpytorch"


class _Process(gpytorch.models.ApproximateGP):
    def __init__(self, points):
        distribution = gpytorch.variational.CholeskyVariationalDistribution(len(points))
        super().__init__(gpytorch.variational.VariationalStrategy(self, points, distribution))
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def _elbo(module, batch):
    objective = gpytorch.mlls.VariationalELBO(module.likelihood, module.process, num_data=2 * NUM_SAMPLES)
    return -objective(module.process(module.network(batch[0])), batch[1])


def _fitted(network, features, width):
    return Fitted(
        network,
        _elbo,
        process=_Process(torch.randn(width, features)),
        likelihood=gpytorch.likelihoods.GaussianLikelihood(),
    )


def _deep(width):
    return _fitted(nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 2)), 2, 6)


_data = batches(lambda g: (torch.randn(NUM_SAMPLES, 5, generator=g), torch.randn(NUM_SAMPLES, generator=g)))

ENTRIES = (
    Entry("DeepKernel", _deep, _data),
    Entry("ApproximateGP", lambda w: _fitted(nn.Identity(), 5, w), _data),
)
