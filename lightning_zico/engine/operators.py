"""Multiply-accumulate operations of each operator, including those that torch's own counter does not know.

A product of matrices or a convolution counts one operation for each pair of numbers that it multiplies. Conventions for
the rest:

- A product of complex numbers counts four real ones. A convolution of complex numbers counts three, since torch
  computes it by three real convolutions.
- A Fourier transform of length n counts ``2.5 n log2 n``, half of the usual ``5 n log2 n`` floating-point operations,
  and half of that for real numbers.
- A product with a sparse matrix counts one for each stored number and column.
- Factorisations and solvers count the leading term given in textbooks: ``n^3 / 6`` for Cholesky, ``n^3 / 3`` for LU and
  determinants, ``n^3`` for an inverse, ``n^2 / 2`` for each column of a triangular system.
- Attention counts all pairs of queries and keys, masked ones too.
- Activations, norms, sums, outer and elementwise products, pooling, interpolation and look-ups count zero.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

# torch counts floating-point operations, two for each multiply-accumulate operation.
FLOPS_PER_MAC = 2
_REAL_PER_COMPLEX = 4

Formula: TypeAlias = Callable[[Mapping[str, Any], Any], float]

# Attention on a CPU, which torch's counter does not know (torch 2.14); it counts as on a GPU.
_ALIKE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}


def _numel(name: str) -> Formula:
    return lambda given, out: given[name].numel()


def _product(name: str) -> Formula:
    """Every number of the output is a sum over the last dimension of an input."""
    return lambda given, out: out.numel() * given[name].shape[-1]


def _grouped(given: Mapping[str, Any], out: Tensor) -> float:
    a = next(iter(given.values()))
    # for two matrices, the groups divide the dimension that is summed over
    return a.numel() * out.shape[-1] if a.ndim == 2 and out.ndim == 3 else out.numel() * a.shape[-1]


def _convolution(given: Mapping[str, Any], out: Tensor) -> float:
    return out.numel() * math.prod(given["weight"].shape[1:])


def _transposed_convolution(given: Mapping[str, Any], out: Tensor) -> float:
    return next(iter(given.values())).numel() * math.prod(given["weight"].shape[1:])


def _either_convolution(given: Mapping[str, Any], out: Tensor) -> float:
    return (_transposed_convolution if given["transposed"] else _convolution)(given, out)


def _attention(given: Mapping[str, Any], out: Any) -> float:
    query, key, value = (given[name] for name in ("query", "key", "value"))
    rows = query.numel() // query.shape[-1]  # of all heads
    return rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _projected_attention(given: Mapping[str, Any], out: Any) -> float:
    query, key = given["query"], given["key"]
    samples, queries, width = query.shape
    projections = query.numel() * 2 * width + 2 * key.numel() * width  # of queries, output, keys and values
    return projections + 2 * samples * queries * key.shape[1] * width


def _encoder_layer(given: Mapping[str, Any], out: Any) -> float:
    source = given["src"]
    attention = _projected_attention({"query": source, "key": source}, out)
    rows = source.numel() // source.shape[-1]
    return attention + rows * (given["ffn_weight_1"].numel() + given["ffn_weight_2"].numel())


def _recurrent_layer(given: Mapping[str, Any], out: Any) -> float:
    steps = given["input"].numel() // given["input"].shape[-1]
    return steps * (given["weight0"].numel() + given["weight1"].numel())


def _recurrent(name: str) -> Formula:
    """Every matrix is used once for each step of each sample."""

    def macs(given: Mapping[str, Any], out: Any) -> float:
        steps = given["input"].numel() // given["input"].shape[-1]
        return steps * sum(weight.numel() for weight in given[name] if weight.ndim > 1)

    return macs


def _trilinear(given: Mapping[str, Any], out: Any) -> float:
    shapes = []
    for i in (1, 2, 3):
        shape = list(given[f"i{i}"].shape)
        for dim in sorted(given[f"expand{i}"]):
            shape.insert(dim, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _fourier(of: Callable[[Mapping[str, Any], Any], Tensor], per_number: float) -> Formula:
    def macs(given: Mapping[str, Any], out: Any) -> float:
        transformed = of(given, out)
        lengths = [max(transformed.shape[dim], 1) for dim in given["dim"]]
        return per_number * transformed.numel() * sum(map(math.log2, lengths))

    return macs


def _square(per_cube: float) -> Formula:
    """Share of ``n^3`` for each matrix."""
    return lambda given, out: per_cube * _first(given).numel() * _first(given).shape[-1]


def _elimination(per_cube: float) -> Formula:
    """Share of ``n^2 (m - n / 3)`` for each matrix with m rows and n columns, or the other way round."""

    def macs(given: Mapping[str, Any], out: Any) -> float:
        matrix = _first(given)
        long, short = max(matrix.shape[-2:]), min(matrix.shape[-2:])
        return per_cube * math.prod(matrix.shape[:-2]) * short**2 * (long - short / 3)

    return macs


def _substitution(name: str, per_number: float) -> Formula:
    """Share of n for each number of the solution, by a matrix with n rows."""
    return lambda given, out: per_number * _tensor(out).numel() * given[name].shape[-1]


def _solution(given: Mapping[str, Any], out: Any) -> float:
    matrix = given["A"]
    return matrix.numel() * matrix.shape[-1] / 3 + _tensor(out).numel() * matrix.shape[-1]


def _first(given: Mapping[str, Any]) -> Tensor:
    return next(value for value in given.values() if isinstance(value, Tensor))


def _tensor(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


# By name, in the namespaces of ``aten`` and torchvision. A formula takes the arguments by name and the result.
_FORMULAS: dict[str, Formula] = {
    # The first four are in torch's counter as well, but its formulas take longer than the operator on the meta device.
    "convolution": _either_convolution,
    **dict.fromkeys(("mm", "bmm"), _product("self")),
    "addmm": _product("mat1"),
    "mv": _numel("self"),
    "addmv": _numel("mat"),
    "dot": _numel("self"),
    "vdot": _numel("self"),
    "addr": lambda given, out: out.numel(),
    "addbmm": lambda given, out: given["batch1"].numel() * given["batch2"].shape[-1],
    "linear": _product("input"),
    "mkldnn_linear": _product("self"),
    "_addmm_activation": _product("mat1"),
    "_mixed_dtypes_linear": _product("input"),
    **dict.fromkeys(("_int_mm", "_scaled_mm_v2", "_weight_int8pack_mm", "_weight_int4pack_mm"), _product("self")),
    "_weight_int4pack_mm_for_cpu": _product("self"),
    **dict.fromkeys(("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2"), _grouped),
    "_trilinear": _trilinear,
    "_cdist_forward": lambda given, out: out.numel() * given["x1"].shape[-1],
    "_euclidean_dist": lambda given, out: out.numel() * given["x1"].shape[-1],
    "_cdist_backward": lambda given, out: _first(given).numel() * given["x1"].shape[-1],
    "_pdist_forward": lambda given, out: out.numel() * given["self"].shape[-1],
    "_pdist_backward": lambda given, out: 2 * _first(given).numel() * given["self"].shape[-1],
    **dict.fromkeys(
        (
            *("_conv_depthwise2d", "conv_depthwise3d", "_mps_convolution", "_nnpack_spatial_convolution"),
            *("mkldnn_convolution", "cudnn_convolution_relu", "cudnn_convolution_add_relu", "miopen_convolution"),
            *("miopen_convolution_relu", "miopen_convolution_add_relu", "miopen_depthwise_convolution"),
            *("slow_conv3d_forward", "slow_conv_dilated2d", "slow_conv_dilated3d", "deform_conv2d"),
        ),
        _convolution,
    ),
    **dict.fromkeys(
        (
            *("cudnn_convolution_transpose", "miopen_convolution_transpose", "_mps_convolution_transpose"),
            *("slow_conv_transpose2d", "slow_conv_transpose3d"),
        ),
        _transposed_convolution,
    ),
    "conv_tbc": lambda given, out: out.numel() * math.prod(given["weight"].shape[:2]),
    **dict.fromkeys(
        (
            *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
            *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
            *("_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps"),
        ),
        _attention,
    ),
    "_native_multi_head_attention": _projected_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "mkldnn_rnn_layer": _recurrent_layer,
    "mkldnn_rnn_layer_backward": lambda given, out: (
        2 * _recurrent_layer({"input": given["input"], "weight0": given["weight1"], "weight1": given["weight2"]}, out)
    ),
    "_cudnn_rnn": _recurrent("weight"),
    "miopen_rnn": _recurrent("weight"),
    "_lstm_mps": _recurrent("params"),
    "_fft_c2c": _fourier(lambda given, out: given["self"], 2.5),
    "_fft_r2c": _fourier(lambda given, out: given["self"], 1.25),
    "_fft_c2r": _fourier(lambda given, out: out, 1.25),
    "linalg_cholesky_ex": _square(1 / 6),
    "cholesky_inverse": _square(1 / 3),
    "linalg_inv_ex": _square(1),
    **dict.fromkeys(("_linalg_det", "_linalg_slogdet"), _square(1 / 3)),
    **dict.fromkeys(("linalg_lu", "linalg_lu_factor_ex"), _elimination(1 / 2)),
    **dict.fromkeys(("linalg_householder_product", "geqrf"), _elimination(1)),
    "linalg_qr": _elimination(2),
    "_linalg_solve_ex": _solution,
    "linalg_solve_triangular": _substitution("self", 1 / 2),
    "triangular_solve": _substitution("A", 1 / 2),
    "cholesky_solve": _substitution("input2", 1),
    "linalg_lu_solve": _substitution("LU", 1),
}

# Products in which a matrix may be sparse, with the names of both operands.
_PRODUCTS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "hspmm": ("mat1", "mat2"),
    "addmm": ("mat1", "mat2"),
    "sspaddmm": ("mat1", "mat2"),
    "_sparse_addmm": ("mat1", "mat2"),
    "_sparse_mm_reduce_impl": ("self", "other"),
    "_sparse_sparse_matmul": ("self", "other"),
}

# Products that nested tensors support; the elements of a batch then differ in length.
_NESTED = frozenset({"linear", "matmul", "mm", "bmm"})

# Operators whose count depends on the values; it is below 50 n^3 for each matrix.
_ITERATIVE = frozenset(
    {"_linalg_eigh", "_linalg_eigvals", "_linalg_svd", "linalg_eig", "linalg_eigvals", "linalg_matrix_exp", "ormqr"}
    | {"linalg_lstsq", "linalg_ldl_factor_ex", "linalg_ldl_solve", "linalg_matrix_sqrth", "linalg_polar"}
)
_MOST_PER_CUBE = 50

# Operators of torch that multiply and accumulate, but have no formula here.
_WITHOUT_FORMULA = frozenset(
    {"_foreach_mm", "_cslt_sparse_mm", "_dyn_quant_matmul_4bit", "_sparse_semi_structured_addmm", "_spsolve"}
    | {"_sparse_semi_structured_linear", "_sparse_semi_structured_mm", "_triton_multi_head_attention"}
    | {"_triton_scaled_dot_attention", "_weight_int4pack_mm_with_scales_and_zeros", "quantized_gru", "quantized_lstm"}
)

_OWN_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler", "rngprims", "inductor_prims"})
# Operators that exchange, gather or compare, without multiply-accumulate operations.
_HARMLESS_NAMESPACES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "torch_scatter"})
_HARMLESS = frozenset({"nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"})


@lru_cache(maxsize=4096)
def counts_nothing(func: Any) -> bool:
    """Whether an operator never multiplies and accumulates, whatever its arguments, like most of torch's."""
    name, packet = _name(func), func._overloadpacket
    if func.namespace in _HARMLESS_NAMESPACES or name.removeprefix("_").removesuffix("_backward") in _HARMLESS:
        return packet not in flop_registry
    if func.namespace not in _OWN_NAMESPACES:
        return False
    known = (_FORMULAS, _PRODUCTS, _NESTED, _ITERATIVE, _WITHOUT_FORMULA, ("sparse_sampled_addmm",))
    return not any(name in names for names in known) and _registered(func) is None


def macs_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> float | None:
    """Count the multiply-accumulate operations of one call of an operator; None if there is no formula for it.

    Args:
        func: Operator, as a ``TorchDispatchMode`` sees it.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        out: Result of the call.
    """
    name = _name(func)
    is_known = func.namespace in ("aten", "torchvision")
    if any(isinstance(arg, Tensor) and arg.is_nested for arg in args):
        return _nested_product(*args[:2]) if name in _NESTED else None
    if is_known and name in _PRODUCTS and not all(_is_dense(value) for value in args):
        a, b = (_named(func, args, kwargs)[side] for side in _PRODUCTS[name])
        return _sparse_product(a, b)
    if name == "sparse_sampled_addmm":
        return float(_factor(args) * _stored(out) * args[1].shape[-1])
    if is_known and name in _FORMULAS:
        factor = 1 if name.startswith("_fft") else _factor(args)
        return factor * _FORMULAS[name](_named(func, args, kwargs), out)
    formula = _registered(func)
    if formula is None:
        return None
    return float(_factor(args) * formula(*args, **kwargs, out_val=out) / FLOPS_PER_MAC)


def most_macs_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Bound the multiply-accumulate operations of one call of an operator for which `macs_of` has no formula."""
    given = [arg for arg in (*args, *kwargs.values()) if arg is not None]
    if func.namespace in _OWN_NAMESPACES:
        if _name(func) in _ITERATIVE:
            matrix = next(arg for arg in given if isinstance(arg, Tensor))
            return float(_MOST_PER_CUBE * matrix.numel() * max(matrix.shape[-2:]))
        return math.inf
    # A foreign kernel. With only one matrix, such as a norm with its vectors, it multiplies no two matrices.
    parts = [part for arg in given for part in (arg if isinstance(arg, list | tuple) else (arg,))]
    matrices = [part for part in parts if isinstance(part, Tensor) and part.ndim > 1 and not _is_integer(part)]
    packed = [arg for arg in given if isinstance(arg, torch.ScriptObject)]  # weights of a quantised layer
    return math.inf if len(matrices) > 1 or packed else 0


def _registered(func: Any) -> Callable[..., Any] | None:
    """Formula of torch's counter, to which users may add their own."""
    packet = func._overloadpacket
    if func.namespace == "aten" and packet.__name__.endswith("_"):
        packet = getattr(torch.ops.aten, _name(func), packet)  # `addmm` of `addmm_`
    return flop_registry.get(_ALIKE.get(packet, packet))


def _name(func: Any) -> str:
    """Name of an operator, without the underscore of in-place operators."""
    return str(func._overloadpacket.__name__).removesuffix("_")


def _named(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(_argument_names(func), args, strict=False)) | dict(kwargs)


@lru_cache(maxsize=4096)
def _argument_names(func: Any) -> list[str]:
    return [argument.name for argument in func._schema.arguments]


def _factor(args: tuple[Any, ...]) -> int:
    tensor = next((arg for arg in args if isinstance(arg, Tensor)), None)
    return _REAL_PER_COMPLEX if tensor is not None and tensor.is_complex() else 1


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _is_dense(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.layout in (torch.strided, torch.jagged)


def _stored(tensor: Tensor) -> int:
    return tensor._nnz() if tensor.layout == torch.sparse_coo else tensor.values().numel()


def _sparse_product(a: Tensor, b: Tensor) -> float:
    columns = b.shape[-1] if b.ndim > 1 else 1
    factor = _factor((a,))
    if _is_dense(b):
        return float(factor * _stored(a) * columns)
    if _is_dense(a):
        return float(factor * _stored(b) * a.shape[-2])
    # a number is multiplied by the numbers of the other matrix in the row given by its column
    inner = a.to_sparse_coo().coalesce().indices()[-1].bincount(minlength=a.shape[-1])
    rows = b.to_sparse_coo().coalesce().indices()[-2].bincount(minlength=b.shape[-2])
    return float(factor * int((inner * rows).sum()))


def _nested_product(a: Tensor, b: Tensor) -> float:
    columns = [part.shape[-1] for part in b.unbind()] if b.is_nested else None
    parts = a.unbind() if a.is_nested else [a] * len(columns or [])
    # the weight of a layer is `[out, in]` and multiplies every row
    return float(sum(part.numel() * (columns[i] if columns else len(b)) for i, part in enumerate(parts)))
