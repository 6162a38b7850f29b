"""Products with second derivatives."""

import re

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_zico._typing import Batch, Params, Step
from lightning_zico.engine.graphs import check_graph
from lightning_zico.engine.scope import preserved, seed_all
from lightning_zico.engine.stateless import Stateless, check_depends, differentiated
from lightning_zico.engine.transforms import real_view
from lightning_zico.errors import NoGradientError, NotApplicableError, message_of

# Error of torch's own operations, such as `hardsigmoid`.
NO_SECOND_DERIVATIVE = re.compile("derivative for .* is not implemented")


def hessian_times_gradient(
    module: nn.Module, step: Step, batch: Batch, names: list[str], *, seed: int = 0
) -> tuple[Params, Params]:
    """Multiply the Hessian of a batch's mean loss by its gradient, differentiating twice.

    Args:
        module: Any module; it is put back afterwards.
        step: ``(module, batch, batch_idx) -> mean loss``.
        batch: Batch on the module's device.
        names: Names of the parameters with respect to which both are computed.
        seed: Seed of dropout.

    Returns:
        The weights (copies) and the products, by name; products with complex weights are pairs of real numbers.

    Raises:
        NoGradientError: If the loss depends on none of the parameters, or all gradients vanish.
        NotApplicableError: If there is a checkpoint with ``use_reentrant=True``, or an operation of the module has no
            second derivative.
    """
    with torch.inference_mode(False), preserved(module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        stateless = Stateless(module)
        own = stateless.copied_params()
        seed_all(seed)

        def differentiate(weights: Params) -> Params:
            loss = stateless.watched_loss(step, batch, 0, None)
            check_depends(loss)
            check_graph(loss)
            gradients = differentiated(loss, weights, create_graph=True)
            if not gradients or not bool(torch.stack([gradient.any() for gradient in gradients.values()]).any()):
                raise NoGradientError(
                    f"The gradients of all {len(names)} scored parameters are zero, and so is every product with them. "
                    "Look for `detach()`, zero-initialised layers and activations that are always off."
                )
            # <stopgrad(g), g>, whose gradient is the Hessian times g
            parts = [real_view(gradient) for gradient in gradients.values()]
            product = sum(((g.detach() * g).sum() for g in parts), torch.zeros((), device=loss.device))
            try:
                # Empty if the loss is linear in the parameters.
                return differentiated(product, weights)
            except RuntimeError as error:
                if not NO_SECOND_DERIVATIVE.search(str(error)):
                    raise
                raise NotApplicableError(f"an operation has no second derivative: {message_of(error)}") from error

        with stateless.holding(own) as (leaves, placed):
            weights: Params = {name: leaves[name] for name in names}
            products = stateless.call({**placed, **stateless.copied_buffers()}, lambda: differentiate(weights))
    return (
        {name: own[name] for name in names},
        {
            name: real_view(products[name].detach() if name in products else torch.zeros_like(own[name]))
            for name in names
        },
    )
