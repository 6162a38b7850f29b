"""The twins against closed forms, on networks small enough for a formula."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference import forward_proxies, proxies
from tests.reference.zico import zico_from_stacks

# float64 on both sides
TIGHT = 1e-9


def randn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    layer.weight.data.copy_(weight)
    return layer


def orthogonal_signs(n: int) -> Tensor:
    """Rows of +-1, mutually orthogonal, for `n` a power of two; the first row is constant."""
    signs = torch.ones(1, 1, dtype=torch.float64)
    while len(signs) < n:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs


def close(value: float) -> object:
    return pytest.approx(value, rel=TIGHT, abs=TIGHT)


def test_least_squares_has_the_saliencies_of_its_quadratic_form() -> None:
    x, y, weight = randn(5, 3), randn(5, 2, seed=4), randn(2, 3, seed=5)
    g = 2 / y.numel() * (x @ weight.T - y).T @ x
    hessian_times_g = g @ (2 / y.numel() * x.T @ x)  # each row of the weight has the same Hessian
    args = (linear(weight), x, y, F.mse_loss)
    assert proxies.grad_norm(*args) == close(g.norm().item())
    assert proxies.plain(*args) == close((weight * g).sum().item())
    assert proxies.snip(*args) == close((weight * g).abs().sum().item())
    assert proxies.grasp(*args) == close(-(weight * hessian_times_g).sum().item())
    assert proxies.l2_norm(args[0]) == close(weight.norm().item())


def test_fisher_of_one_linear_layer_is_half_the_mean_square_of_output_times_gradient() -> None:
    x, y, weight = randn(5, 3), randn(5, 2, seed=4), randn(2, 3, seed=5)
    o = x @ weight.T
    expected = 0.5 * (o * 2 / y.numel() * (o - y)).square().mean(0).sum().item()
    assert proxies.fisher(linear(weight), x, y, F.mse_loss, fan_in=False) == close(expected)
    assert proxies.fisher(linear(weight), x, y, F.mse_loss) == close(3 * expected)


def test_synflow_of_a_chain_is_its_depth_times_the_sum_over_paths_whatever_is_normalised() -> None:
    first, second = randn(4, 3), randn(2, 4, seed=4)
    paths = (second.abs() @ first.abs()).sum().item()
    network = nn.Sequential(linear(first), nn.BatchNorm1d(4).double(), linear(second))
    assert proxies.synflow(network, randn(5, 3)) == close(math.log(2 * paths))


def test_equal_jacobians_have_one_eigenvalue_and_correlate_fully() -> None:
    x, y = randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    few, many = linear(randn(2, 3)), linear(randn(101, 3))
    eigenvalues = [5, 0, 0, 0, 0]
    # 1 / (v + 1e-5) makes a zero eigenvalue's rounding error, about 1e-15, a relative one of 1e-10
    assert proxies.jacob_cov(few, x) == close(-sum(math.log(v + 1e-5) + 1 / (v + 1e-5) for v in eigenvalues))
    assert proxies.epe_nas(few, x, y) == close((4 + 9) * math.log(1 + 1e-5))
    assert proxies.epe_nas(many, x, y) == close(2 * abs(2 - 3) * math.log(1 + 1e-5) / 2)


def test_bits_are_counted_as_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, -1.0], [3.0, -1.0, -2.0], [1.0, 1.0, -3.0]])
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Identity())
    assert forward_proxies.swap(network, x) == 3  # 111, 101 and 000
    assert forward_proxies.linear_regions(network, x) == 2  # 110 and 100
    assert forward_proxies.log_neurons(network, x) == close(math.log(3))
    assert forward_proxies.naswot(network, x[:2]) == close(math.log(3 * 3 - 2 * 2))
    assert forward_proxies.naswot(network, x) == -math.inf  # two samples have one code


def test_effective_rank_of_an_identity_is_its_size_before_and_after_the_activation() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert forward_proxies.near(nn.ReLU(), eye) == close(8)
    assert forward_proxies.near(nn.ReLU(), eye[None]) == close(8)
    assert forward_proxies.near(nn.ReLU(), -eye) == close(4)  # nothing is left after it
    assert forward_proxies.near(nn.ReLU(), torch.ones(7, 3, 2, 2)) == close(2)


def test_meco_is_one_per_map_of_orthogonal_channels_and_zero_for_identical_ones() -> None:
    orthogonal = orthogonal_signs(32)[1:17].reshape(1, 16, 4, 8)
    network = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity()))
    assert forward_proxies.meco(network, orthogonal) == close(2)
    assert forward_proxies.meco_opt(network, orthogonal) == close(2 * 16 / 8)
    assert forward_proxies.meco(network, orthogonal[:, :1].expand(1, 3, 4, 8)) == close(0)
    assert forward_proxies.meco(network, orthogonal[:, :1]) == 0  # a single channel has no partner


def test_zen_of_a_copying_network_measures_the_noise_and_the_variance_before_the_norm() -> None:
    x, noise = randn(4, 1, 2, 3), randn(4, 1, 2, 3, seed=4)
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
    nn.init.ones_(network[0].weight)
    expected = (0.01 * noise.abs().sum((1, 2, 3)).mean()).log() + 0.5 * x.flatten(1).var(0, correction=0).mean().log()
    assert forward_proxies.zen(network, x, noise) == close(expected.item())


def test_tangent_kernel_of_a_linear_layer_is_conditioned_as_its_inputs() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    assert proxies.ntk_cond(linear(randn(4, 3)), x) == close(-9)


def test_samples_that_agree_give_the_largest_gradsign_and_the_squared_norm_of_their_gradient() -> None:
    x, y, weight = randn(1, 3).expand(4, 3), randn(1, 2, seed=4).expand(4, 2), randn(2, 3, seed=5)
    g = (x[:1] @ weight.T - y[:1]).T @ x[:1]
    assert proxies.gradsign(linear(weight), x, y, F.mse_loss) == close(4)
    assert proxies.knas(linear(weight), x, y, F.mse_loss) == close(g.square().sum().item())


def test_opposite_samples_cancel_in_gradsign_and_knas() -> None:
    x, y = torch.cat([randn(1, 3), -randn(1, 3)]), torch.ones(2, 1, dtype=torch.float64)
    network = linear(torch.zeros(1, 3))  # g_i = -2 y_i x_i
    assert proxies.gradsign(network, x, y, F.mse_loss) == 0
    assert proxies.knas(network, x, y, F.mse_loss) == close(0)


def test_fisher_information_of_two_even_classes_is_half_flat() -> None:
    # p (1 - p) [[1, -1], [-1, 1]] x mean of x x^T: eigenvalues 0 and 1/8, four times each, and the median between them
    expected = 1 + 1 / 9 * math.log(9) + 8 / 9 * math.log(9 / 2)
    network = linear(torch.zeros(2, 4))
    # the four zeros come out as about 1e-18
    assert proxies.vkdnw(network, torch.eye(4, dtype=torch.float64)) == close(expected)


def test_two_batches_give_one_over_half_the_difference_of_their_magnitudes() -> None:
    network = nn.Sequential(linear(torch.tensor([[1.0]])), nn.ReLU())
    batches = [(torch.tensor([[1.0]]), torch.tensor([[3.0]])), (torch.tensor([[2.0]]), torch.tensor([[1.0]]))]
    # g = 2 (x - y) x = -4 and 4, or with the second label at 0: -4 and 8
    assert proxies.lswag(network, batches, F.mse_loss) == 0
    batches[1] = (batches[1][0], torch.tensor([[0.0]]))
    assert proxies.lswag(network, batches, F.mse_loss) == close(math.log(1 / 2))


def test_bias_correction_of_zico_is_the_log_of_positions_over_the_root_of_channels() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()
    batches = [(randn(3, 2, 5, 5, seed=seed), torch.tensor([0, 1, 2])) for seed in (1, 2)]
    gradients = [proxies.layer_gradients(network, x, y) for x, y in batches]
    zico = zico_from_stacks({name: np.stack([g[name] for g in gradients]) for name in gradients[0]})
    expected = zico - 2 * (math.log(9 / 2) + math.log(1 / math.sqrt(3)))
    assert proxies.zico_bc(network, batches, beta=2) == close(expected)


def test_a_layer_without_gradient_is_not_alive() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), linear(torch.zeros(3, 36))).double()
    x, y = randn(3, 2, 5, 5), torch.tensor([0, 1, 2])
    assert (proxies.params_live(network, x, y), proxies.macs_live(network, x, y)) == (108, 108)
    nn.init.ones_(network[2].weight[:1])
    before = copy.deepcopy(network.state_dict())
    assert (proxies.params_live(network, x, y), proxies.macs_live(network, x, y)) == (36 + 108, 9 * 36 + 108)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_isotropic_features_have_the_entropy_of_their_number_in_each_block() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    network, blocks = nn.Sequential(nn.Identity(), linear(3 * eye), linear(eye[:2])), ["0", "1", "2"]
    x = torch.cat([eye, -eye])
    four, two = -math.log(1 / 4 + 1e-8), -math.log(1 / 2 + 1e-8)
    assert forward_proxies.az_entropies(network, blocks, x) == close([four, four, two])
    assert forward_proxies.az_expressivity(network, blocks, x) == close(2 * four + two)
    assert forward_proxies.az_expressivity_mean(network, blocks, x) == close((2 * four + two) / 3)
    assert forward_proxies.az_progressivity(network, blocks, x) == close(two - four)


def test_trainability_falls_with_the_distance_of_a_blocks_gain_from_one_and_skips_identities() -> None:
    patch = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    conv = nn.Conv2d(1, 1, 2, stride=2, bias=False).double()
    conv.weight.data.copy_(patch)
    network = nn.Sequential(nn.Identity(), nn.Identity(), conv)
    vs = [orthogonal_signs(4).reshape(1, 1, 4, 4), torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]])]
    gain = patch.norm().item()
    value = proxies.az_trainability(network, ["0", "1", "2"], randn(1, 1, 4, 4), vs)
    assert value == close(2 - gain - 1 / (gain + 1e-6))
    # over orthogonal columns of signs the mean of v v^T is the identity
    doubling = nn.Sequential(nn.Identity(), linear(2 * torch.eye(4)))
    value = proxies.az_trainability(doubling, ["0", "1"], randn(4, 4), [orthogonal_signs(4)])
    assert value == close(2 - 2 - 1 / (2 + 1e-6))
