"""Memory: the bytes that a training step holds."""

import torch
from torch import Tensor, UntypedStorage

from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.scope import preserved, seed_all


def step_bytes(probe: Probe) -> int:
    """Count the bytes that a training step of the first batch holds when its backward pass begins.

    These are the parameters, buffers and batch, the tensors that autograd has saved for the backward pass, and a
    gradient for each trainable parameter; each storage counts once. Optimizer states and temporary memory of operators
    are not counted, so a step takes at least this much. The number is not measured, so it is the same on every run.

    Args:
        probe: Probe of the candidate; its first batch is run once.

    Returns:
        Bytes; lower is better.
    """
    held: dict[int, UntypedStorage] = {}  # kept alive, so that no other storage reuses its address

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage
        return tensor

    with torch.inference_mode(False), preserved(probe.module), torch.enable_grad():
        stateless = probe.stateless
        params = stateless.copied_params()
        trainable = [params[name] for name, p in stateless.params.items() if p.requires_grad]
        tensors = params | stateless.copied_buffers()
        batch = probe.first_batch
        for tensor in (*tensors.values(), *tensors_of(batch)):
            hold(tensor)
        seed_all(probe.seed)
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            stateless.run(tensors, lambda: stateless.watched_loss(probe.step, batch, 0, None))
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in trainable)
    return gradients + sum(storage.nbytes() for storage in held.values())
