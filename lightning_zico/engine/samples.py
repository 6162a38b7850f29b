"""Samples: count those of a batch.

Index conventions:
    N: samples in a batch
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_zico._typing import Batch, NumSamples, is_count
from lightning_zico.errors import NotApplicableError

# What to do if samples cannot be counted.
WAY_OUT = "Pass `num_samples=`, a number or a function of the batch."
NO_SAMPLES = (str, bytes, int, float, complex, type(None))


@dataclass
class Seen:
    """Facts about the samples of a batch that a pass showed.

    Args:
        rows: Length of dimension 0 that the outputs of networks share; None if there is none, or if they differ.
        outputs: Lengths of dimension 0 of the outputs of all networks that the step itself called.
        calls: Maximum number of calls of one of these networks.
        compared: Lengths of dimension 0 that a loss function compared with each other.
        sequences: Numbers of samples in the inputs of recurrent layers and attention, by their ``batch_first``.
    """

    rows: int | None = None
    outputs: set[int] = field(default_factory=set)
    calls: int = 1
    compared: set[int] = field(default_factory=set)
    sequences: set[int] = field(default_factory=set)


def stated_samples(batch: Batch, num_samples: NumSamples | None) -> int | None:
    """Number of samples that the user states for a batch; None if the user states nothing.

    Args:
        batch: As the loader yields it.
        num_samples: Checked by `_typing.check_num_samples`.

    Raises:
        ValueError: If a function returns anything other than a positive int.
    """
    if num_samples is None or isinstance(num_samples, int):
        return num_samples
    count = num_samples(batch)
    if not is_count(count):
        raise ValueError(f"`num_samples=` returned {count!r} for a batch: expected a positive int.")
    return int(count)


def num_samples(batch: Batch, seen: Seen | None = None) -> int | None:
    """Count the samples of a batch; None if their number is unknown.

    The order of a batch's fields does not matter. These are used in turn:

    1. Objects that state it: ``num_graphs``, ``batch_size``, packed sequences and nested tensors.
    2. The only length that all fields can have: dimension 0 of a tensor, or the length of a list of samples, such as
       images or targets of different sizes. Strings, numbers and tensors without dimensions are ignored.
    3. The results of a pass: recurrent layers and attention show which dimension counts samples. Otherwise it is the
       length of a field that the network's output or the arguments of a loss function share. Fields that divide another
       one, such as the index that assigns nodes to graphs, decide between the two.

    Args:
        batch: Any nest.
        seen: Results of a pass on the batch; None without a pass.

    Example:
        >>> num_samples({"x": torch.zeros(5, 2), "y": torch.zeros(5), "weight": torch.tensor(0.5)})
        5
        >>> bags = (torch.zeros(20), torch.zeros(4))  # tokens, and the start of each bag
        >>> num_samples(bags), num_samples(bags, Seen(rows=4))
        (None, 4)
    """
    known = set(_known(batch))
    if known:
        return known.pop() if len(known) == 1 else None
    fields = _possible(batch, inside=False)
    if not fields:
        return None
    shared = frozenset.intersection(*fields)
    only = next(iter(shared)) if len(shared) == 1 else None
    if seen is None:
        return only
    sequences = _evident(batch, seen.sequences)
    if sequences is None:
        return None
    if only not in sequences:
        along_second = [count for count in sequences if _in_first_two(batch, count, has_flat=only is None)]
        if len(along_second) == 1:
            return along_second[0]
    if only is not None:
        return only
    listed = _listed(batch)
    is_told, count = _of_list(listed, seen) if len(listed) > 1 else (False, None)
    count = count if is_told else _voted(batch, shared or frozenset.union(*fields), seen)
    # If attention sees windows, channels and views as separate sequences, each sample has the same number of them.
    fits = count is not None and (count in sequences or all(sequence % count == 0 for sequence in sequences))
    return count if fits else None


def is_settled(batch: Batch) -> bool:
    """Whether the batch has an object that states its number of samples, which no pass can overrule."""
    return any(True for _ in _known(batch))


def known_samples(count: int | None) -> int:
    """Return the samples of a batch, for a number per sample.

    Raises:
        NotApplicableError: If they are unknown.
    """
    if count is None:
        raise NotApplicableError(f"the number of samples in a batch is unknown. {WAY_OUT}")
    return count


def is_list(batch: Batch) -> bool:
    """Whether a part of a batch is a list or a tuple without names."""
    return isinstance(batch, list | tuple) and not hasattr(batch, "_fields")


def _stated_by(batch: Batch) -> int | None:
    """Number of samples that an object states."""
    if isinstance(batch, PackedSequence):
        return int(batch.batch_sizes[0])
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.is_nested else None
    if is_list(batch) or isinstance(batch, NO_SAMPLES):
        return None
    for name in ("num_graphs", "batch_size"):
        try:
            value = batch[name] if isinstance(batch, Mapping) and name in batch else getattr(batch, name, None)
            value = value[0] if isinstance(value, torch.Size) else value
            value = int(value) if isinstance(value, Tensor) and value.numel() == 1 else value
        except Exception:
            continue
        if is_count(value):
            return int(value)
    return None


def parts_of(batch: Batch) -> list[Batch]:
    """List the elements of a list, or the fields of another container."""
    return list(batch) if is_list(batch) else fields_of(batch)


def fields_of(batch: Batch) -> list[Batch]:
    """List the parts of a container that is not a list, or of a foreign object that has ``to_dict``."""
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, tuple):
        return list(batch)
    if dataclasses.is_dataclass(batch):
        return [getattr(batch, each.name) for each in dataclasses.fields(batch)]
    to_dict = getattr(batch, "to_dict", None)
    try:
        given = to_dict() if callable(to_dict) else None
    except Exception:
        given = None
    return list(given.values()) if isinstance(given, Mapping) else []


def _known(batch: Batch) -> Iterator[int]:
    """Yield the numbers of samples that objects in a batch state; objects in a list of like ones are samples."""
    stated = _stated_by(batch)
    if stated is not None:
        yield stated
    elif is_list(batch):
        if not are_alike(batch):
            for part in batch:
                yield from _known(part)
    elif not isinstance(batch, (Tensor, *NO_SAMPLES)):
        for part in fields_of(batch):
            yield from _known(part)


def are_alike(parts: Any) -> bool:
    """Whether the elements of a list may be samples, which have the same structure; fields usually do not."""
    return len({_structure(part) for part in parts}) == 1


def _structure(batch: Batch) -> Any:
    if isinstance(batch, Tensor):
        return batch.dtype, batch.ndim
    if isinstance(batch, Mapping):
        return type(batch), frozenset(map(str, batch))
    return (type(batch), frozenset(map(_structure, batch))) if is_list(batch) else type(batch)


def _possible(batch: Batch, *, inside: bool = True) -> list[frozenset[int]]:
    """List the possible numbers of samples, for each field of a batch that restricts them."""
    if isinstance(batch, NO_SAMPLES):
        return []
    if isinstance(batch, Tensor):
        return [frozenset({len(batch)})] if batch.ndim and len(batch) else []
    stated = _stated_by(batch)
    if stated is not None:
        return [frozenset({stated})]
    if not is_list(batch):
        return [counts for part in fields_of(batch) for counts in _possible(part)]
    fields = [counts for part in batch for counts in _possible(part)]
    if not batch or isinstance(batch[0], NO_SAMPLES) or not are_alike(batch):
        return fields
    # A batch may be a list of a few fields, but a field of it that lists dictionaries or objects lists samples, and
    # so does any list of parts with fields of their own, such as an image and its boxes, that share no length.
    is_nested = not isinstance(batch[0], Tensor)
    if not fields or (inside and is_nested and not is_list(batch[0])) or (is_nested and _lists_samples(batch)):
        return [frozenset({len(batch)})]
    return [(frozenset.intersection(*fields) or frozenset.union(*fields)) | {len(batch)}]


def _lists_samples(parts: Any) -> bool:
    if not isinstance(parts, list) or len(parts) < 2:
        return False
    inside = [_possible(part, inside=False) if is_list(part) else _possible(part) for part in parts]
    return any(len(fields) > 1 and not frozenset.intersection(*fields) for fields in inside)


def _listed(batch: Batch) -> list[Batch]:
    """Elements of the lists that a batch consists of, such as images and masks; empty if it has other fields."""
    if isinstance(batch, (Tensor, *NO_SAMPLES)):
        return []
    parts = [part for part in (batch if is_list(batch) else fields_of(batch)) if _possible(part)]
    inside = [_listed(part) for part in parts]
    if inside and all(len(each) > 1 for each in inside) and len({len(each) for each in inside}) == 1:
        return inside[0]
    return parts if is_list(batch) and len(parts) == len(batch) > 1 and are_alike(batch) else []


def _of_list(listed: list[Batch], seen: Seen) -> tuple[bool, int | None]:
    """Decide by a pass whether the like parts of a list are samples, or several views of all samples.

    Args:
        listed: At least two parts.
        seen: Results of a pass.

    Returns:
        Whether the pass decides it, and the number of samples; None if that is unknown.
    """
    shapes = [tuple(tensor.shape) for part in listed for tensor in _leaves(part) if tensor.ndim]
    lengths = {shape[0] for shape in shapes}
    is_loop = seen.calls > 1 and seen.calls % len(listed) == 0
    has_one_shape = isinstance(listed[0], Tensor) and len(set(shapes)) == 1
    if seen.calls == 1 and len(lengths) > 1 and not isinstance(listed[0], Tensor):  # perhaps run on one part only
        return True, len(listed) if seen.rows == len(listed) else None
    if seen.calls == 1:  # joined to one tensor, views give a row for each sample and view
        rows = len(listed) * shapes[0][0] if has_one_shape else None
        return rows is not None and seen.rows == rows, shapes[0][0]
    if seen.rows == 1 and is_loop:  # one sample at a time, or views of one
        return True, None if has_one_shape and lengths == {1} else len(listed)
    if has_one_shape:
        return False, None
    if len(lengths) == 1:  # views of different sizes; a loop over samples may give that many rows by chance
        return not (seen.compared & lengths), None
    # Two parts of different lengths may be two batches, such as one with labels and one without.
    return True, len(listed) if is_loop and len(listed) > 2 else None


def _leaves(batch: Batch) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif not isinstance(batch, NO_SAMPLES):
        for part in batch if is_list(batch) else fields_of(batch):
            yield from _leaves(part)


def _evident(batch: Batch, sequences: set[int]) -> set[int] | None:
    """Numbers of samples that sequence layers show; None if these are ambiguous.

    Layers for which the samples themselves form one sequence get one sequence, which no field counts.
    """
    shapes = [tensor.shape for tensor in _leaves(batch) if tensor.ndim]
    if 1 not in sequences or any(shape[0] == 1 for shape in shapes):
        return sequences
    if sequences == {1} and any(len(shape) == 3 and shape[1] == 1 for shape in shapes):
        return None
    return sequences - {1}


def _in_first_two(batch: Batch, count: int, *, has_flat: bool) -> bool:
    """Whether every field may have ``count`` samples in dimension 0 or 1, and a field of several dimensions does.

    Attention masks, which are square, have no samples. With ``has_flat``, the targets of all steps may be in one row.
    """
    found = False
    for tensor in _leaves(batch):
        shape = tensor.shape
        if count in shape[:2]:
            found = found or len(shape) > 1
        elif len(shape) == 1 and has_flat and shape[0] % count == 0:
            continue
        elif shape and not (len(shape) > 1 and shape[-1] == shape[-2]):
            return False
    return found


def _voted(batch: Batch, among: frozenset[int], seen: Seen) -> int | None:
    """The length of a field on which outputs and loss functions agree; None if there is not exactly one."""
    outputs = {length for length in among if length in (seen.outputs or (seen.rows,))}
    if len(outputs) > 1 and seen.calls == 1:  # of several networks, such as one for nodes and one for graphs
        outputs &= seen.compared
    votes = (seen.compared & among) | outputs
    groups = {(parts, whole) for tensor in _leaves(batch) for parts, whole in _groupings(tensor, among)}
    counts = {parts for parts, _ in groups} - {whole for _, whole in groups}  # nodes of graphs, not edges of nodes
    if len(counts) == 1 and votes <= {length for group in groups for length in group}:
        return counts.pop()
    return next(iter(votes)) if len(votes) == 1 else None


def _groupings(tensor: Tensor, among: frozenset[int]) -> Iterator[tuple[int, int]]:
    """Pairs of lengths ``(parts, whole)`` where a tensor may divide the whole into parts.

    Such a tensor has the index of the part for each row of the whole, ``[whole]``; the sizes or ends of the parts,
    ``[parts]``; or their bounds, ``[parts + 1]``.
    """
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        return
    values = tensor.tolist()
    is_sorted = bool(values) and values[0] == 0 and all(a <= b for a, b in pairwise(values))
    if is_sorted and all(b - a <= 1 for a, b in pairwise(values)):
        candidates = [(values[-1] + 1, len(values))]
    elif is_sorted:
        candidates = [(len(values) - 1, values[-1])]
    elif values and min(values) > 0:
        are_ends = all(a < b for a, b in pairwise(values))  # not an index, which would be less than the length
        candidates = [(len(values), sum(values)), *([(len(values), values[-1])] if are_ends else [])]
    else:
        candidates = []
    yield from ((parts, whole) for parts, whole in candidates if parts < whole and {parts, whole} <= among)
