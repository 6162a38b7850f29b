"""Check the data that the user passes: several batches, or something that gives them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from lightning_zico.candidates import Candidate
from lightning_zico.errors import InvalidArgumentError, UnsupportedBatchError

_EXPECTED = "expected a LightningDataModule, a DataLoader or a list of batches"


def is_datamodule(data: Any) -> bool:
    """Whether data is a LightningDataModule of either package."""
    return isinstance(data, LightningDataModule) or all(
        callable(getattr(data, hook, None)) for hook in ("prepare_data", "setup", "train_dataloader", "teardown")
    )


def pick_data(train_dataloaders: Any, datamodule: Any, *, pairs: bool = False) -> Any:
    """Return the training data, whichever of the two arguments it was given as, after `check_data`.

    Raises:
        UnsupportedBatchError: If neither or both are given, or if it is not data.
    """
    if train_dataloaders is not None and datamodule is not None:
        raise UnsupportedBatchError("Pass either `train_dataloaders` or `datamodule`, not both.")
    name = "datamodule" if train_dataloaders is None and datamodule is not None else "train_dataloaders"
    data = datamodule if train_dataloaders is None else train_dataloaders
    check_data(data, name=name, pairs=pairs)
    return data


def check_data(data: Any, *, name: str = "data", pairs: bool = False) -> None:
    """Check that an object can give batches, without reading any.

    Args:
        data: The data as the user passes it.
        name: Name of the argument.
        pairs: Whether batches must be pairs. A list of tensors is then not a list of batches.

    Raises:
        UnsupportedBatchError: If it is a class, a single batch, a dataset, a module, a string or None.
    """
    if isinstance(data, type):
        raise UnsupportedBatchError(
            f"Invalid {name}={data.__name__}: it is a class. Pass an instance, `{data.__name__}(...)`."
        )
    if is_datamodule(data) or isinstance(data, DataLoader | Iterator):
        return
    problem = _problem_of(data, pairs)
    if problem is not None:
        raise UnsupportedBatchError(f"Invalid {name}: {problem}.")


def check_validation_data(data: Any, val_dataloaders: Any) -> None:
    """Check validation data, which may only be passed if the training data is not a data module.

    Raises:
        UnsupportedBatchError: If it is not data, or is a data module; or if the training data is a data module, which
            has its own validation data.
    """
    if val_dataloaders is None:
        return
    if is_datamodule(data):
        raise UnsupportedBatchError(
            f"Invalid val_dataloaders: the {type(data).__name__} has its own `val_dataloader`. Leave "
            "`val_dataloaders` out, or pass a DataLoader to train on."
        )
    if is_datamodule(val_dataloaders):
        raise UnsupportedBatchError(
            "Invalid val_dataloaders: a LightningDataModule; expected a DataLoader or a list of batches. Pass the data "
            "module as `datamodule`, or pass its `val_dataloader()`."
        )
    check_data(val_dataloaders, name="val_dataloaders")


def check_readable_again(data: Any, name: str, why: str, way_out: str) -> None:
    """Check that data can be read more than once.

    Args:
        data: Data that passed `check_data`.
        name: Name of the argument.
        why: Why once is not enough, for the error message.
        way_out: What to pass or call instead.

    Raises:
        InvalidArgumentError: If it is an iterator, or a collection that holds one.
    """
    once = next((leaf for leaf in tree_leaves(data) if isinstance(leaf, Iterator)), None)
    if once is not None:
        raise InvalidArgumentError(
            f"Invalid {name}: a {type(once).__name__}, which can be read only once, {why}. {way_out}."
        )


def _problem_of(data: Any, pairs: bool) -> str | None:
    """Return what is wrong with the data, or None if nothing is found."""
    kind = type(data).__name__
    if isinstance(data, Tensor | np.ndarray):
        return f"a single {kind} of shape {tuple(data.shape)}; {_EXPECTED}"
    if (offered := _candidate_in(data)) is not None:
        return f"a {kind} that contains a candidate, {offered}; {_EXPECTED}. Pass candidates first, then the data"
    if data is None or isinstance(data, str | bytes | nn.Module) or not isinstance(data, Iterable | Dataset):
        shown = repr(data) if isinstance(data, str | int | float) else kind
        return f"{'None' if data is None else shown}; {_EXPECTED}"
    if not isinstance(data, Iterable):
        return f"the dataset {kind}; {_EXPECTED}. Pass `DataLoader(dataset, batch_size=..., shuffle=True)`"
    if isinstance(data, Mapping) and not any(isinstance(leaf, DataLoader) for leaf in tree_leaves(dict(data))):
        if any(isinstance(value, Tensor) for value in data.values()):
            return _one_batch(f"a {kind} of tensors")
        return f"a {kind} without a DataLoader in it; {_EXPECTED}"
    if callable(getattr(data, "to", None)):  # a graph, a TensorDict or another object that moves to a device
        return _one_batch(f"a {kind}")
    if isinstance(data, list | tuple) and (hasattr(data, "_fields") or _is_one_batch(data, pairs)):
        return _one_batch(f"a {kind} of {', '.join(map(_described, data[:4]))}{', ...' if len(data) > 4 else ''}")
    return None


def _candidate_in(data: Any) -> str | None:
    """Return the name of the first part of a list or mapping if it is a candidate, else None."""
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else ()
    first = next(iter(parts), None)
    if isinstance(first, type) and issubclass(first, nn.Module):
        return first.__name__
    return f"a {type(first).__name__}" if isinstance(first, nn.Module | Candidate) else None


def _one_batch(what: str) -> str:
    return (
        f"{what}, which looks like one batch; {_EXPECTED}. Put several batches in a list, or pass the loader that "
        "yields them"
    )


def _is_one_batch(data: Sequence[Any], pairs: bool) -> bool:
    """Whether a list holds the parts of one batch instead of several batches.

    Batches have the same structure; inputs and targets usually differ. A list of tensors of one kind may be batches
    without targets, so it is accepted unless batches must be pairs.
    """
    if not data or any(isinstance(leaf, DataLoader) for leaf in tree_leaves(list(data))):
        return False
    if all(isinstance(part, np.ndarray) for part in data):
        return True
    if all(isinstance(part, Tensor) for part in data):
        return pairs or len({(part.dtype, part.ndim) for part in data}) > 1 or _has_a_column_of_targets(data)
    if len({_family(part) for part in data}) > 1:
        return True
    if not all(isinstance(part, list | tuple) for part in data):
        return isinstance(data[0], str | int | float)
    first, *others = [{_kind(part) for part in batch} for batch in data]
    return bool(first) and any(other and first.isdisjoint(other) for other in others)


def _has_a_column_of_targets(tensors: Sequence[Tensor]) -> bool:
    """Whether some of the tensors, all of one kind and length, are a single column, as regression targets are."""
    lengths = {len(tensor) if tensor.ndim else None for tensor in tensors}
    are_columns = {tensor.shape[1:].numel() == 1 for tensor in tensors}
    return len(lengths) == 1 and len(are_columns) > 1


def _family(part: Any) -> Any:
    """Return the type of a part, with lists and tuples as one type and all mappings as one type."""
    return next((family for family in (Tensor, Mapping) if isinstance(part, family)), _sequence_or_type(part))


def _sequence_or_type(part: Any) -> Any:
    return list if isinstance(part, list | tuple) else type(part)


def _kind(part: Any) -> Any:
    return (Tensor, part.dtype, part.ndim) if isinstance(part, Tensor) else _family(part)


def _described(part: Any) -> str:
    return f"Tensor {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
