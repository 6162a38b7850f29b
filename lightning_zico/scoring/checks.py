"""Check, before and while candidates are scored, that proxies are defined on the batches."""

from collections.abc import Sequence
from typing import get_args

from lightning_zico._typing import Axis, Batch, NumSamples
from lightning_zico.bridge.data import Reread
from lightning_zico.engine.batches import all_equal
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.samples import num_samples as counted_samples
from lightning_zico.engine.samples import stated_samples
from lightning_zico.errors import IdenticalBatchesError, TooFewBatchesError
from lightning_zico.proxies import Proxy
from lightning_zico.texts import all_of


def check_axis(axis: Axis) -> None:
    """Validate ``axis``.

    Raises:
        ValueError: If it is neither ``"batch"`` nor ``"sample"``.
    """
    if axis not in get_args(Axis):
        raise ValueError(f'Invalid axis={axis!r}: expected "batch" or "sample".')


def compares_batches(proxy: Proxy, axis: Axis) -> bool:
    """Return whether a proxy compares gradients between batches, and not between samples."""
    return axis == "batch" and proxy.min_gradients > 1


def check_batches(
    batches: Sequence[Batch], proxies: Sequence[Proxy], axis: Axis, num_samples: NumSamples | None = None
) -> None:
    """Check that candidates can be scored on the batches.

    Raises:
        TooFewBatchesError: If they give fewer gradients than a proxy needs.
        IdenticalBatchesError: If a proxy compares gradients between batches and all batches are the same.
        ValueError: If ``num_samples`` returns anything but a positive int for one of them.
    """
    stated = [stated_samples(batch, num_samples) for batch in batches]
    needed = max(proxies, key=lambda proxy: proxy.min_gradients)
    least = max(needed.min_gradients, 1)
    if not batches or needed.min_gradients:
        counts = [
            counted_samples(batch) if count is None else count for batch, count in zip(batches, stated, strict=True)
        ]
        # If the samples of a batch cannot be counted, a candidate's forward pass may show them.
        given = sum(count or least for count in counts) if axis == "sample" else len(batches)
        unit, way_out = ("samples", "Pass more samples") if axis == "sample" else ("batches", "Raise `num_batches`")
        if given < least:
            raise TooFewBatchesError(f"`{needed.name}` needs at least {least} {unit}; got {given}. {way_out}.")
    if isinstance(batches, Reread) and batches.are_copies:
        return  # the training step may be random; `check_variation` checks that
    if compares_batches(needed, axis) and all_equal(batches):
        raise IdenticalBatchesError(
            f"{all_of(len(batches), 'batch')} are the same, so no gradient can vary and `{needed.name}` is not "
            "defined. Shuffle the data, or pass batches with different samples."
        )


def check_variation(probe: Probe, proxy: Proxy) -> None:
    """Check that gradients can vary if all batches are copies of one, because the loader has only one batch.

    Raises:
        IdenticalBatchesError: If the proxy compares gradients between batches, and the training step is not random, so
            all gradients are equal up to rounding.
    """
    are_copies = isinstance(probe.batches, Reread) and probe.batches.are_copies
    if compares_batches(proxy, probe.axis) and are_copies and not probe.draws:
        raise IdenticalBatchesError(
            "the training data has only one batch, with the same samples each time it is read, and the training step "
            f"is not random, so no gradient varies between batches and `{proxy.name}` is not defined. Use smaller "
            'batches or `axis="sample"`, or rank by proxies that need only one batch, as the default recipe does.'
        )
