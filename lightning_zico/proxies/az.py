"""AZ-NAS: expressivity, progressivity and trainability of a network's blocks.

Index conventions:
    N: samples in a batch
    R: rows, all positions of all samples
    C: channels
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_zico.engine.graphs import check_graph
from lightning_zico.engine.observers import Observer, Rows, floating_tensor_in
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.weights import gaussian_batch, kaiming_weights
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy

_STABILISER = 1e-8  # for the entropy, as published
_INVERSE_STABILISER = 1e-6  # for the trainability, as published
# The paper uses 64. On 60 networks of NAS-Bench-201, the ranks with 32 and with 64 have a Spearman's rho of at least
# .99.
NUM_INPUTS = 32


def isotropy(features: Tensor) -> Tensor:
    r"""Compute how evenly features are spread over their directions.

    .. math::
        -\sum_c p_c \log(p_c + 10^{-8}), \qquad p_c = \lambda_c \Big/ \sum_k \lambda_k

    with :math:`\lambda` the eigenvalues of the covariance of the channels. With fewer rows than channels, they are
    computed from the products of the rows, which have the same eigenvalues other than zero.

    Args:
        features: ``[R, C]``.

    Returns:
        Scalar, float64, at most ``log C``; NaN if the features vary by no more than rounding errors, or are not finite.

    Example:
        >>> round(float(isotropy(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]))), 4)  # log 2
        0.6931
    """
    mean = features.mean(dim=0)
    centred = features - mean
    few = centred if len(centred) < centred.shape[1] else centred.T
    products = (few @ few.T).double() / len(features)  # [C, R] @ [R, C] -> [C, C], or [R, C] @ [C, R] -> [R, R]
    eigenvalues = torch.linalg.eigvalsh(_finite(products)).clamp_(min=0)
    total = eigenvalues.sum()
    rounding = torch.finfo(features.dtype).eps ** 2 * mean.double().square().sum()
    shares = eigenvalues / total.masked_fill(~(total > rounding), math.nan)
    return -(shares * (shares + _STABILISER).log()).sum()


def spectral_balance(gradients: Tensor, signs: Tensor) -> Tensor:
    r"""Compute how close a block's Jacobian is to preserving lengths.

    .. math::
        2 - \sigma - \frac{1}{\sigma + 10^{-6}}, \qquad \sigma = \lVert U^\top V / R \rVert_2

    with :math:`\lVert\cdot\rVert_2` the largest singular value. With fewer rows than channels, it is that of the
    product of the triangular factors of :math:`U^\top` and :math:`V^\top`, which are smaller.

    Args:
        gradients: :math:`U`, ``signs`` propagated backward through the block, ``[R, C']``.
        signs: :math:`V`, random signs used as the gradient of the output, ``[R, C]``.

    Returns:
        Scalar, float64, at most about 0, which is reached where ``sigma`` is 1; NaN if an entry is not finite.
    """
    if len(signs) < min(gradients.shape[1], signs.shape[1]):
        left, right = (torch.linalg.qr(_finite(each.T.double()), mode="r").R for each in (gradients, signs))  # [R, R]
        product = left @ right.T / len(signs)
        product = product.masked_fill(~gradients.isfinite().all(), math.nan)
    else:
        product = (gradients.T @ signs).double() / len(signs)  # [C', R] @ [R, C] -> [C', C]
    return _balance_of(product)


def token_balance(gradients: Tensor, signs: Tensor) -> Tensor:
    r"""Compute `spectral_balance` of a block whose output has few positions for its channels, as tokens have.

    The published mean :math:`U^\top V / R` has an error that grows with the width of the block: of an identity, which
    preserves all lengths, its norm is not one, but about :math:`(1 + \sqrt{C / R})^2`. Here, the part of the gradients
    that is a multiple of the signs, whose mean is known, is taken out first:

    .. math::
        \sigma = \Bigl\lVert \beta I + (U - \beta V)^\top V / R \Bigr\rVert_2, \qquad
        \beta = \langle U, V \rangle / \langle V, V \rangle

    With many rows, both are the same. If the block changes the width of a token, :math:`\beta` is zero.

    Args:
        gradients: :math:`U`, ``signs`` propagated backward through the block, ``[R, C']``.
        signs: :math:`V`, random signs used as the gradient of the output, ``[R, C]``.

    Returns:
        As `spectral_balance`.

    Example:
        >>> signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
        >>> round(float(token_balance(0.5 * signs, signs)), 4)  # 2 - 1/2 - 1 / (1/2)
        -0.5
    """
    if gradients.shape != signs.shape:
        return spectral_balance(gradients, signs)
    beta = (gradients * signs).sum(dtype=torch.float64) / signs.numel()
    rest = (gradients - beta.to(gradients) * signs).T @ signs  # [C, R] @ [R, C] -> [C, C]
    return _balance_of(
        rest.double() / len(signs) + beta * torch.eye(len(rest), dtype=torch.float64, device=rest.device)
    )


def _balance_of(jacobian: Tensor) -> Tensor:
    # The eigenvalues take half the time of the singular values, and the largest is as exact.
    is_finite = jacobian.isfinite().all()
    jacobian = jacobian.masked_fill(~is_finite, 0.0)
    gram = jacobian @ jacobian.T if len(jacobian) < jacobian.shape[1] else jacobian.T @ jacobian
    sigma = torch.linalg.eigvalsh(gram)[-1].clamp_(min=0).sqrt().masked_fill(~is_finite, math.nan)
    return 2 - sigma - 1 / (sigma + _INVERSE_STABILISER)


def _finite(matrix: Tensor) -> Tensor:
    """Replace a matrix that is not finite by zeros, so that it can be decomposed, without synchronising the device."""
    return matrix.masked_fill(~matrix.isfinite().all(), 0.0)


class BlockStatistics(NamedTuple):
    """What AZ-NAS measures in one pass.

    Args:
        expressivities: `isotropy` of each block's output by name, in order of execution.
        trainabilities: `spectral_balance` by name of each block that follows another one. Identities are left out, and
            so are blocks whose positions do not correspond to those of the block before.
        num_hidden: Number of blocks whose output autograd does not track.
        has_tokens: Whether a block that follows another one outputs tokens, that is, has its channels last.
    """

    expressivities: dict[str, float]
    trainabilities: dict[str, float]
    num_hidden: int
    has_tokens: bool


@dataclass(unsafe_hash=True)
class _Blocks(Observer):
    """Collect the outputs of blocks and differentiate each with respect to the one before.

    Args:
        names_of_blocks: Submodules to observe.
        seed: Seed of the random signs.
        tokens: Whether to differentiate blocks whose outputs are tokens as well.
    """

    names_of_blocks: tuple[str, ...] = ()
    seed: int = 0
    tokens: bool = False

    needs_graph: ClassVar[bool] = True
    needs_input_graph: ClassVar[bool] = False

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self._outputs: list[tuple[str, nn.Module, Tensor]] = []
        self.rows = Rows()
        self._isotropies: dict[str, Tensor] = {}

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the output of a block."""
        tensor = floating_tensor_in(output) if name in self.names_of_blocks else None
        if tensor is not None:
            self.rows.see(tensor)
            self._outputs.append((name, module, tensor))
            self._isotropies[name] = isotropy(_rows(tensor.detach(), module))

    def ended(self) -> None:
        """Send random signs backward through each block."""
        if len(self._outputs) < 2:
            raise NotApplicableError(
                f"only {len(self._outputs)} of the {len(self.names_of_blocks)} blocks ran: expected at least two."
            )
        generator = torch.Generator().manual_seed(self.seed)
        balances = {}
        any_tokens = False
        for (_, before, earlier), (name, block, later) in pairwise(self._outputs):
            earlier_map, later_map = _channels_first(earlier, before), _channels_first(later, block)
            has_tokens = later_map is not later
            any_tokens |= has_tokens
            if has_tokens and not self.tokens:
                continue
            # Drawn even if the block is then left out, so that the signs of the others do not depend on it.
            signs = torch.randint(2, later.shape, generator=generator, dtype=torch.float32).mul_(2).sub_(1).to(later)
            strides = _correspondence(earlier_map.shape, later_map.shape, has_tokens)
            if strides is None or not (later.requires_grad and earlier.requires_grad):
                continue
            try:
                (back,) = torch.autograd.grad(later, [earlier], signs, retain_graph=True, allow_unused=True)
            except RuntimeError:
                check_graph(later)
                raise
            if back is None or (back.shape == signs.shape and torch.equal(back, signs)):
                continue  # the blocks are not consecutive, or the block is an identity
            rows = _aligned(_channels_first(back, before), _channels_first(signs, block), strides)
            balances[name] = (token_balance if has_tokens else spectral_balance)(*rows)
        keys = [*self._isotropies, *balances]
        values = torch.stack([*self._isotropies.values(), *balances.values()]).tolist()
        split = len(self._isotropies)
        self.statistics = BlockStatistics(
            dict(zip(keys[:split], values[:split], strict=True)),
            dict(zip(keys[split:], values[split:], strict=True)),
            sum(not output.requires_grad for _, _, output in self._outputs),
            any_tokens,
        )
        self._outputs = []


def _channels_first(tensor: Tensor, module: nn.Module) -> Tensor:
    """Move the channels to dimension 1. They are the dimension whose length also occurs in the module's weights."""
    if tensor.ndim < 3:
        return tensor

    def is_in_weights(size: int) -> bool:
        return any(size in parameter.shape[:2] for parameter in module.parameters())

    def has(kind: type[nn.Module]) -> bool:
        return any(type(part) is kind for part in module.modules())

    first, last = is_in_weights(tensor.shape[1]), is_in_weights(tensor.shape[-1])
    if tensor.ndim == 3:  # tokens, unless the module convolves along one dimension
        last = not has(nn.Conv1d) or not first or (last and has(nn.Linear))
    else:  # channels that were concatenated are in no weight, and the width of a map may be in one by chance
        last = last and not first and (not has(nn.Conv2d) or has(nn.Linear))
    return tensor.movedim(-1, 1) if last else tensor


def _rows(tensor: Tensor, module: nn.Module) -> Tensor:
    return _flat(_channels_first(tensor, module))


def _flat(tensor: Tensor) -> Tensor:
    # [N, C, ...] -> [C, R] -> [R, C]; the positions of a map stay side by side in memory, which copies faster.
    return tensor.reshape(len(tensor), -1) if tensor.ndim < 3 else tensor.movedim(1, 0).flatten(1).T


def _correspondence(before: Sequence[int], after: Sequence[int], has_tokens: bool) -> list[int] | None:
    """Return the stride along each side of a map, ``[]`` if rows correspond as they are, and None if nothing fits.

    Only the sizes are known, so two cases are misread: patches that are as many as the pixels of a map are treated as
    its pixels, and a 3 x 3 convolution without padding from 5 to 3 pixels as one with a stride of 2.

    Args:
        before: Shape of the output of the block before, with channels first.
        after: Shape of the block's output, with channels first.
        has_tokens: Whether the block outputs tokens. Fewer tokens than before correspond to none of them.
    """
    before_sizes, sizes = before[2:], after[2:]
    has_same_samples = before[0] == after[0]
    if has_same_samples and math.prod(sizes) == 1:  # one position, computed from a whole sample
        return []
    if has_same_samples and len(before) == len(after):
        if has_tokens and before_sizes != sizes and len(sizes) == 1:
            return None
        return _strides(before_sizes, sizes)
    is_matrix = 2 in (len(before), len(after))  # whose rows may be the positions of all samples
    has_same_rows = before[0] * math.prod(before_sizes) == after[0] * math.prod(sizes)
    return [] if has_same_rows and (has_same_samples or is_matrix) else None


def _aligned(back: Tensor, signs: Tensor, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Bring gradients to the positions of the signs, as rows: where a block shrinks maps, neighbours become channels.

    Args:
        back: Gradients, with channels first.
        signs: Signs, with channels first.
        strides: Of `_correspondence`.
    """
    if strides:
        back = _patches(back, strides, signs.shape[2:])
    sign_rows = _flat(signs)
    return _flat(back).reshape(len(sign_rows), -1), sign_rows


def _strides(before: Sequence[int], after: Sequence[int]) -> list[int] | None:
    """Return the stride along each side of a map: the integer nearest to the ratio of sizes.

    Return None if no integer stride gives the new size of a side, or if one stride is more than twice another, as
    happens where patches cut from a map lie in a row.
    """
    strides = []
    for old, new in zip(before, after, strict=True):
        stride = max(1, round(old / max(1, new)))
        if new not in (math.ceil(old / stride), old // stride):
            return None
        strides.append(stride)
    return strides if max(strides) <= 2 * min(strides) else None


def _patches(tensor: Tensor, strides: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Move the positions within each stride into channels, ``[N, C, ...]`` to ``[N, C * steps, *sizes]``."""
    missing = [stride * size - own for stride, size, own in zip(strides, sizes, tensor.shape[2:], strict=True)]
    if any(missing):
        tensor = F.pad(tensor, [end for size in reversed(missing) for end in (0, size)])
    for idx, stride in enumerate(strides):
        tensor = tensor.unflatten(2 + 2 * idx, (-1, stride))
    places = range(len(strides))
    return tensor.movedim([3 + 2 * idx for idx in places], [2 + idx for idx in places]).flatten(1, 1 + len(strides))


def block_statistics(probe: Probe, tokens: bool = False) -> BlockStatistics:
    """Run a candidate with Kaiming weights on Gaussian inputs, as many as the batch has, but at most 32.

    Args:
        probe: The candidate.
        tokens: Whether blocks whose outputs are tokens get a trainability as well.

    Raises:
        NotApplicableError: If the candidate has fewer than two blocks, or runs them on a part of the batch at a time.
    """
    blocks = probe.blocks
    if len(blocks) < 2:
        raise NotApplicableError(
            "the network has no blocks, because nothing in it is repeated. Name them with `blocks=`."
        )
    generator = torch.Generator().manual_seed(probe.seed)
    weights = kaiming_weights(probe.module, generator, probe.structure)
    batch, inputs, count = probe.first_samples(NUM_INPUTS)
    batch = gaussian_batch(batch, generator, inputs)
    # The weights are leaves, because tokens have no gradient: the graph then starts at the embeddings.
    own = probe.stateless.copied_params(weights)
    weights = {name: t.requires_grad_(t.is_floating_point()) for name, t in (own | weights).items()}
    observer = _Blocks(tuple(blocks), probe.seed, tokens)
    probe.forward(observer, tensors=weights, batch=batch, fed="Gaussian inputs and Kaiming weights", is_cut=True)
    observer.rows.check(count, "its blocks")
    return observer.statistics


def token_statistics(probe: Probe) -> BlockStatistics:
    """Compute `block_statistics` with the trainability of blocks whose outputs are tokens."""
    return block_statistics(probe, tokens=True)


def _expressivities(probe: Probe) -> dict[str, float]:
    parts = probe.once(block_statistics).expressivities
    if not all(map(math.isfinite, parts.values())):
        probe.doubt(nothing_flows=True)
    _check_finite(parts, "features", "do not vary, or are not finite")  # a minimum may ignore NaN
    return parts


def _check_finite(parts: Mapping[str, float], of: str, how: str) -> None:
    for name, value in parts.items():
        if not math.isfinite(value):
            raise NotApplicableError(
                f"the {of} of block '{name}' {how}, with Kaiming weights and Gaussian inputs in place of its own."
            )


@register_proxy("az_expressivity")
class AZExpressivity(Proxy):
    r"""Sum over the blocks of how evenly their features are spread, `isotropy` (Lee & Ham, CVPR 2024).

    As a sum, it rewards depth; `AZExpressivityMean` does not.

    Source:
        *AZ-NAS*, arXiv:2403.19232, implemented from its formulas. It uses Kaiming weights, Gaussian inputs (integers,
        such as tokens, are kept) and no labels. All AZ proxies share one pass, except `AZTrainability(tokens=True)`,
        which has its own.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Sum over the blocks."""
        parts = _expressivities(probe)
        return Measurement(math.fsum(parts.values()), details={"blocks": parts})


@register_proxy("az_expressivity_mean")
class AZExpressivityMean(Proxy):
    """Mean over the blocks of how evenly their features are spread: `AZExpressivity` without its reward for depth."""

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Average over the blocks."""
        parts = _expressivities(probe)
        return Measurement(math.fsum(parts.values()) / len(parts), details={"blocks": parts})


@register_proxy("az_progressivity")
class AZProgressivity(Proxy):
    r"""Smallest increase of expressivity from block to block, :math:`\min_l (s_l - s_{l-1})` (Lee & Ham, CVPR 2024)."""

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Return the smallest increase."""
        parts = _expressivities(probe)
        return Measurement(min(b - a for a, b in pairwise(parts.values())), details={"blocks": parts})


@register_proxy("az_trainability")
class AZTrainability(Proxy):
    """Mean over the blocks of how well they preserve gradient norms, `spectral_balance` (Lee & Ham, CVPR 2024).

    Blocks that are identities are left out (the published code returns minus infinity for them, and leaves them out of
    transformers). So are blocks whose positions do not correspond to those of the block before, for example where a
    class token joins the patches, or where one side of a map shrinks more than twice as much as another.

    The published mean over positions has an error that grows with the width of a block. It is small in convolutional
    networks, which have many positions, and is most of the value in transformers, whose scores it makes fall with
    width. Outputs with channels last, as those of tokens, can be scored by `token_balance`, which takes most of the
    error out. Even so, it ranked vision transformers worse than their size does, so such networks have a score only
    with ``tokens=True``.

    Args:
        tokens: Whether to score networks with blocks whose outputs are tokens.
        name: Name of the column.
    """

    needs_labels = False

    def __init__(self, tokens: bool = False, name: str = "az_trainability") -> None:
        self.tokens = tokens
        self.name = name

    def measure(self, probe: Probe) -> Measurement:
        """Average over the blocks that follow another."""
        statistics = probe.once(token_statistics if self.tokens else block_statistics)
        parts = statistics.trainabilities
        if statistics.has_tokens and not self.tokens:
            raise NotApplicableError(
                "its blocks output tokens, for which this number does not separate good networks from bad ones. To "
                "compute it anyway, pass `AZTrainability(tokens=True)`."
            )
        if not parts and statistics.num_hidden:
            raise NotApplicableError(
                f"autograd does not follow {statistics.num_hidden} of its blocks: they run under `torch.no_grad()`, in "
                "a checkpoint with `use_reentrant=True`, or in a `torch.autograd.Function` of the network's own. Use "
                "`use_reentrant=False`, or switch checkpointing off for scoring."
            )
        if not parts:
            raise NotApplicableError(
                "no block's positions correspond to those of the block before it, or all such blocks are identities."
            )
        _check_finite(parts, "gradients", "are not finite")
        return Measurement(math.fsum(parts.values()) / len(parts), details={"blocks": parts})
