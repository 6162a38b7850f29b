"""Data flow of a step: which parameters multiply the data, and which tensors the network reads."""

import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_zico._typing import Batch, Step
from lightning_zico.engine.batches import map_tensors, tensors_of
from lightning_zico.engine.dispatched import SHAPED, SHAPED_RANDOM, key_of, name_of, tensors_in, written_by
from lightning_zico.engine.meta import META, placing
from lightning_zico.engine.outside import outside_put_back
from lightning_zico.engine.scope import preserved, seed_all, unfused
from lightning_zico.engine.stateless import Ends, Stateless
from lightning_zico.engine.tree import submodules
from lightning_zico.errors import SkippedBatchError


@dataclass(frozen=True)
class DataFlow:
    """Facts about parameters and the batch that one run of a step shows.

    Args:
        products: Trainable parameters of two or more dimensions that a matrix product, a convolution or a similar
            operator multiplies, directly or through a tensor that is computed from parameters only.
        inputs: Positions, in the order of `batches.tensors_of`, of the tensors that the network reads: those that are
            combined with a parameter, and not only used by the loss.
        fan_ins: For products that multiply an unchanged parameter: how many of its entries contribute to one output.
        reached: Parameters that the loss depends on for autograd; None if a checkpoint hides them.
        is_fixed: Whether the run read no value of data and no random number, so that every run takes the same path.
        failure: Why the step could not be followed; None if it was. After a failure, ``products`` is empty and
            ``inputs`` has all tensors.
        used: Positions of the tensors that any operator reads; None if the step could not be followed.
    """

    products: frozenset[str]
    inputs: frozenset[int]
    reached: frozenset[str] | None
    fan_ins: Mapping[str, int] = field(default_factory=dict)
    is_fixed: bool = False
    failure: str | None = None
    used: frozenset[int] | None = None


def trace_flow(
    module: nn.Module, step: Step, batch: Batch, muted: Callable[[nn.Module], None] = lambda _: None
) -> DataFlow:
    """Run a step once and follow its tensors, on the meta device if possible.

    Every tensor has the origins of its memory. A tensor computed only from parameters and constants is a weight; a
    tensor computed from the batch is data. A parameter that is looked up (an embedding), added (a
    positional table) or applied entry by entry (a gain, a norm) is read but multiplies nothing.

    A tensor of the batch is an input if it is combined with a parameter before it is combined with the network's
    output, or if that combination then goes into a product with a parameter, as with an attention mask. Neither holds
    for targets, not even if the loss multiplies them by outputs or has weights of its own.

    Args:
        module: Any module; it is put back afterwards.
        step: ``(module, batch, batch_idx) -> loss``. Autograd is on, since a step may differentiate.
        batch: As for `gradients.stream_gradients`.
        muted: Called with the module before the run on the meta device, to silence code that cannot run there.
    """

    def trace(device: torch.device | None) -> DataFlow:
        placed = placing(device)
        stateless = Stateless(module)
        params = {
            name: placed(parameter).requires_grad_(parameter.requires_grad)
            for name, parameter in stateless.params.items()
        }
        buffers = {name: placed(buffer) for name, buffer in stateless.buffers.items()}
        own_batch = map_tensors(placed, batch)
        constants = [*buffers.values(), *_attributes(module)]
        seed_all(0)
        state = random.getstate()
        # The module's own parameters cannot be on another device.
        with nullcontext((params, params)) if device else stateless.holding(params) as (leaves, taking):
            follower = _Follower(leaves, constants, own_batch)

            def run() -> frozenset[str] | None:
                with follower:
                    loss = step(module, own_batch, 0)
                return _reached(loss, leaves) if isinstance(loss, Tensor) else frozenset()

            reached = stateless.call({**taking, **buffers}, run)
        is_fixed = not follower.reads_values and random.getstate() == state
        products = frozenset(
            name for name in follower.products if stateless.params[name].requires_grad and params[name].ndim > 1
        )
        read, used = frozenset(follower.read), frozenset(follower.used)
        return DataFlow(products, read, reached, follower.fan_ins, is_fixed, used=used)

    with torch.inference_mode(False), torch.enable_grad(), unfused(), preserved(module) as reset:
        muted(module)
        try:
            with outside_put_back(module, step):
                return trace(META)
        except SkippedBatchError:
            raise
        except Exception:  # a step that reads values, or makes tensors on the CPU
            reset()
        try:
            return trace(None)
        except SkippedBatchError:
            raise
        except Exception as error:
            everything = frozenset(range(len(tensors_of(batch))))
            return DataFlow(frozenset(), everything, None, failure=f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class _Origin:
    """Origin of a tensor.

    Args:
        params: Names of the parameters in it; for data, only those combined with it outside of products.
        is_data: Whether data is in it: a tensor of the batch, or a result computed from one.
        fresh: Positions in the batch of the tensors in it that have not been combined with a parameter.
        is_computed: Whether it is the result of a product with a parameter, or of data combined with a parameter.
        is_random: Whether random numbers are in it.
        matrices: Names of parameters, for data that still consists of whole matrices of them, which data chose (such
            as those of an expert) or scaled.
    """

    params: frozenset[str] = frozenset()
    is_data: bool = False
    fresh: frozenset[int] = frozenset()
    is_computed: bool = False
    is_random: bool = False
    matrices: frozenset[str] = frozenset()

    @property
    def is_weight(self) -> bool:
        return bool(self.params) and not self.is_data

    @classmethod
    def together(cls, origins: "list[_Origin]") -> "_Origin":
        if len(origins) == 1:
            return origins[0]
        return cls(
            frozenset().union(*(origin.params for origin in origins)),
            any(origin.is_data for origin in origins),
            frozenset().union(*(origin.fresh for origin in origins)),
            any(origin.is_computed for origin in origins),
            any(origin.is_random for origin in origins),
            cls._matrices_of(origins),
        )

    @staticmethod
    def _matrices_of(origins: "list[_Origin]") -> frozenset[str]:
        data = [origin for origin in origins if origin.is_data]
        if not data or not all(origin.matrices for origin in data):
            return frozenset()
        return frozenset().union(*(o.matrices if o.is_data else o.params for o in origins))


_CONSTANT = _Origin()
_FOREIGN = _Origin(is_data=True)
_RANDOM = _Origin(is_random=True)

# Operators with multiply-accumulate operations for which torch's counter has no formula (torch 2.14).
_PRODUCTS = frozenset(
    {"mv", "addmv", "addbmm", "addr", "dot", "vdot", "linear", "bilinear", "_trilinear", "_cdist_forward"}
    | {"_euclidean_dist", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "lstm", "gru", "_addmm_activation"}
    | {"_sparse_addmm", "_sparse_mm", "_sparse_sparse_matmul", "_native_multi_head_attention", "_convolution"}
    | {"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable"}
    | {"_scaled_dot_product_attention_math", "_scaled_dot_product_attention_math_for_mps"}
)
# Products whose first operand is added.
_ADDING = frozenset({"addmm", "addmv", "addbmm", "addr", "baddbmm", "_addmm_activation", "_sparse_addmm"})
# Positions of the operands that are weights by definition, also if data is mixed into them ("modulated").
_WEIGHT_SLOTS: Mapping[str, tuple[int, ...]] = {
    "convolution": (1,),
    "_convolution": (1,),
    "cudnn_convolution": (1,),
    "mkldnn_convolution": (1,),
    "linear": (1,),
    "mkldnn_rnn_layer": (1, 2),
}
# Products whose last two operands are matrices, or a matrix and a vector.
_MATRIX_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv"})
_SCALING = frozenset({"mul", "div"})
_LOOK_UPS = frozenset({"embedding", "_embedding_bag", "_embedding_bag_forward_only"})
# Operators that turn values into numbers or shapes of Python, on which code may branch.
_VALUE_READS = frozenset(
    {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim"}
)


class _Follower(TorchDispatchMode):
    """Keeps the origins of tensors by reference to their memory, so that views share them."""

    supports_higher_order_operators = True

    def __init__(self, params: Mapping[str, Tensor], constants: list[Tensor], batch: Batch) -> None:
        super().__init__()
        self.products: set[str] = set()
        self.read: set[int] = set()
        self.used: set[int] = set()
        self.fan_ins: dict[str, int] = {}
        self.reads_values = False
        # A weak reference keeps the address of freed memory from being used again.
        self._origins: dict[StorageWeakRef, _Origin] = {}
        for tensor in constants:
            self._origins[key_of(tensor)] = _CONSTANT
        for tensor in _foreign_tensors(batch):
            self._origins[key_of(tensor)] = _FOREIGN
        for position, tensor in enumerate(tensors_of(batch)):
            self._origins[key_of(tensor)] = _Origin(is_data=True, fresh=frozenset([position]))
        for name, tensor in params.items():
            self._origins[key_of(tensor)] = _Origin(frozenset([name]))
        self._fixed = {key_of(tensor): name for name, tensor in params.items()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Outside of inference mode, composite operators such as `linear` are decomposed before they arrive here.
        if torch.is_inference_mode_enabled() and hasattr(func, "decompose"):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        # Looked up before the call, because an operator may write to its arguments.
        given = [(position, tensor) for position, arg in enumerate(args) for tensor in tensors_in(arg)]
        given += [(-1, tensor) for tensor in tensors_in(list(kwargs.values()))]
        keys = {key_of(tensor) for _, tensor in given}
        name = name_of(func)
        is_constant = name == "lift_fresh"  # `torch.tensor(...)` within the step
        origins = [(position, _CONSTANT if is_constant else self._origin_of(tensor)) for position, tensor in given]
        self.used.update(*(origin.fresh for _, origin in origins))
        if name in _VALUE_READS:
            self.reads_values |= any(origin.is_data or origin.is_random for _, origin in origins)
        out = func(*args, **kwargs)
        if _is_product(func, name):
            origins = _with_weights_chosen(name, origins)
        result = self._result(func, name, origins, _whole_matrices(name, args, origins))
        self._note_fan_ins(name, given, origins)
        for tensor in tensors_in(out):
            key = key_of(tensor)
            if key not in keys:
                self._origins[key] = result
        for tensor in written_by(func, args, kwargs):
            key = key_of(tensor)
            if key not in self._fixed:
                self._origins[key] = _Origin.together([self._origin_of(tensor), result])
        return out

    def _origin_of(self, tensor: Tensor) -> _Origin:
        # An unknown tensor comes from outside the step, such as from an array that it turns into a tensor.
        return self._origins.get(key_of(tensor), _FOREIGN)

    def _result(self, func: Any, name: str, origins: list[tuple[int, _Origin]], matrices: frozenset[str]) -> _Origin:
        """Note what an operator shows, and return the origin of its output; see `_whole_matrices`."""
        if name.startswith(SHAPED):
            return _CONSTANT
        if name.startswith(SHAPED_RANDOM) or (not origins and _is_random(func)):
            return _RANDOM
        if not origins:
            return _CONSTANT
        # in-place operators have the same names, with an underscore at the end
        name = name.rstrip("_")
        result = _Origin.together([origin for _, origin in origins])
        is_look_up = name in _LOOK_UPS
        is_product = not is_look_up and _is_product(func, name)
        weights = [origin for _, origin in origins if origin.is_weight]
        if is_product:
            self._note_products(name, origins)
        if weights and (result.is_data or is_look_up):
            everything = is_product or is_look_up
            # The loss reads targets and may have parameters of its own; so may predictions that depend on no input.
            is_plain = not all(origin.is_computed for origin in weights)
            for _, origin in origins:
                if origin.is_data and (everything or (is_plain and not origin.is_computed)):
                    self.read |= origin.fresh
            fresh = result.fresh - self.read
            kept = frozenset() if everything else result.params
            matrices = frozenset() if everything else matrices or result.matrices
            return _Origin(kept, True, fresh, True, result.is_random, matrices)
        if is_product:
            if result.is_data:
                return _Origin(frozenset(), True, result.fresh, result.is_computed, result.is_random)
            # A generator's noise becomes data at its first layer; a weight with random numbers in it stays a weight.
            is_data = any(origin == _RANDOM for _, origin in origins) and bool(weights)
            return _Origin(result.params if not is_data else frozenset(), is_data, frozenset(), True, result.is_random)
        return replace(result, matrices=matrices) if matrices else result

    def _note_products(self, name: str, origins: list[tuple[int, _Origin]]) -> None:
        slots = _WEIGHT_SLOTS.get(name, ())
        for position, origin in origins:
            if not _is_added(name, position) and (origin.is_weight or position in slots):
                self.products |= origin.params

    def _note_fan_ins(self, name: str, given: list[tuple[int, Tensor]], origins: list[tuple[int, _Origin]]) -> None:
        if name not in _MATRIX_PRODUCTS:
            return
        left, right = [tensor for _, tensor in given][-2:]
        fan_ins = left.shape[-1], right.shape[-2 if right.ndim > 1 else -1]
        for matrix, (_, origin), fan_in in zip((left, right), origins[-2:], fan_ins, strict=True):
            parameter = self._fixed.get(key_of(matrix))
            for chosen in origin.matrices if parameter is None else (parameter,):
                self.fan_ins[chosen] = fan_in


def _is_added(name: str, position: int) -> bool:
    """Whether a product adds the operand at a position rather than multiplying by it."""
    is_bias = name.startswith("_scaled_dot_product") and position > 2
    return is_bias or (name in _ADDING and position == 0) or ("convolution" in name and position == 2)


def _with_weights_chosen(name: str, origins: list[tuple[int, _Origin]]) -> list[tuple[int, _Origin]]:
    """Treat matrices that data chose or scaled as weights if a product multiplies other data by them."""
    if not any(o.is_data and not o.matrices and not _is_added(name, position) for position, o in origins):
        return origins
    return [(position, replace(o, params=o.matrices, is_data=False) if o.matrices else o) for position, o in origins]


def _whole_matrices(name: str, args: tuple[Any, ...], origins: list[tuple[int, _Origin]]) -> frozenset[str]:
    """Name the parameters whose whole matrices an operator chooses or scales by data."""
    tensors = [arg for arg in args[:2] if isinstance(arg, Tensor)]
    matrix = next((o for _, o in origins if o.is_weight or o.matrices), None)
    if matrix is None or not tensors:
        return frozenset()
    if name in ("index", "_unsafe_index"):
        is_whole = tensors[0].ndim - len(args[1]) > 1
    elif name == "index_select":
        is_whole = args[1] % tensors[0].ndim < tensors[0].ndim - 2
    elif name in _SCALING and len(tensors) == 2:
        own, other = tensors if origins[0][1] is matrix else tensors[::-1]
        is_whole = own.ndim > 1 and min(own.shape[-2:]) > 1 and all(size == 1 for size in other.shape[-2:])
    else:
        return frozenset()
    is_chosen = is_whole and any(o.is_data for _, o in origins) and (name in _SCALING or origins[0][1] is matrix)
    return (matrix.matrices or matrix.params) if is_chosen else frozenset()


def _is_product(func: Any, name: str) -> bool:
    packet = getattr(func, "_overloadpacket", func)
    # Nothing is known about operators that torch does not ship; most of those with weights are fused layers.
    foreign = getattr(func, "namespace", "aten") not in ("aten", "prim", "prims", "profiler", "higher_order")
    return packet in flop_registry or name in _PRODUCTS or foreign


def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def _attributes(module: nn.Module) -> list[Tensor]:
    """List the constants: tensors that submodules keep as plain attributes, such as masks."""
    found: list[Tensor] = []
    for part in submodules(module).values():
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                found += tensors_in(value)
    return found


@dataclass
class _Found:
    tensors: list[Tensor] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)


def _foreign_tensors(batch: Any) -> list[Tensor]:
    """List the tensors in objects of a batch that `tensors_of` does not search, such as graphs."""
    found = _Found()
    _collect(batch, found, depth=6)
    return found.tensors


def _collect(value: Any, found: _Found, depth: int) -> None:
    if isinstance(value, Tensor):
        found.tensors.append(value)
        return
    if depth == 0 or id(value) in found.seen or isinstance(value, str | bytes | int | float | type | None):
        return
    found.seen.add(id(value))
    if isinstance(value, Mapping):
        parts: list[Any] = list(value.values())
    elif isinstance(value, list | tuple | set):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        _collect(part, found, depth - 1)


def _reached(loss: Tensor, params: Mapping[str, Tensor]) -> frozenset[str] | None:
    ends = Ends.of(loss)
    if ends.are_hidden:
        return None
    return frozenset(name for name, tensor in params.items() if ends.hold(tensor))
