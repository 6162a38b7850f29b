"""NAS-Bench-101: a cell is a graph with an operation on each vertex, repeated in a fixed skeleton.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
    K: classes
"""

import math
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import chain, combinations, pairwise, product
from operator import index
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_zico.spaces._parts import Conv
from lightning_zico.spaces.base import Reader, SearchSpace, Trial, register_space

OPS = ("conv1x1-bn-relu", "conv3x3-bn-relu", "maxpool3x3")

_INPUT, _OUTPUT = "input", "output"
_MAX_OPS = 5  # seven vertices, with the input and the output
_MAX_EDGES = 9
_STEM_WIDTH = 128
_WIDTHS = (128, 256, 512)  # widths of the three stacks
_CELLS_PER_STACK = 3
_KERNELS = {"conv1x1-bn-relu": 1, "conv3x3-bn-relu": 3}

# For each vertex from 1 on, the start vertices of its incoming edges; vertex 0 is the input of the cell.
Inputs: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class NASBench101Arch:
    """A cell of NAS-Bench-101: a graph whose vertices all lie on paths from its input to its output.

    Vertex 0 is the input, the last one the output. Edges go from lower to higher numbers.

    Args:
        ops: The operation of each vertex between input and output, each one of `OPS`; at most five.
        inputs: For each vertex from 1 to the output, the start vertices of its incoming edges in ascending order; at
            most nine edges in total.

    Raises:
        ValueError: If the arguments do not describe such a graph.

    Example:
        >>> print(NASBench101Arch(("conv3x3-bn-relu", "maxpool3x3"), ((0,), (0, 1), (0, 2))))
        |conv3x3-bn-relu~0|maxpool3x3~0~1|output~0~2|
    """

    ops: tuple[str, ...]
    inputs: Inputs

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))  # a list cannot be hashed
        object.__setattr__(self, "inputs", tuple(tuple(map(index, starts)) for starts in self.inputs))
        if len(self.ops) > _MAX_OPS or not set(self.ops) <= set(OPS):
            raise ValueError(f"Invalid ops={self.ops!r}: expected at most {_MAX_OPS} of {', '.join(OPS)}.")
        if len(self.inputs) != len(self.ops) + 1 or not _is_cell(self.inputs):
            raise ValueError(
                f"Invalid inputs={self.inputs!r}: expected, for each of the {len(self.ops)} `ops` and for the output, "
                "at least one earlier vertex with an edge to it, in ascending order. Every vertex must have an edge "
                f"to a later one, and there can be at most {_MAX_EDGES} edges in total."
            )

    @classmethod
    def from_matrix(cls, matrix: Sequence[Sequence[int]], ops: Sequence[str]) -> "NASBench101Arch":
        """Read a cell as the benchmark writes it; vertices on no path from input to output are left out.

        NASLib writes the same in one row of numbers: the seven rows of the matrix, then the operations, with 0 for
        ``input``, 1 for ``output``, 2 for ``maxpool3x3``, 3 for ``conv1x1-bn-relu`` and 4 for ``conv3x3-bn-relu``.

        Args:
            matrix: ``matrix[i][j]`` is 1 if there is an edge from vertex i to vertex j, else 0; always 0 for i >= j.
            ops: The operation of each vertex, the first ``"input"``, the last ``"output"``.

        Raises:
            ValueError: If the matrix has another shape or edges back, if no path leads from input to output, or if
                what is left is larger than cells may be.

        Example:
            >>> matrix = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
            >>> print(NASBench101Arch.from_matrix(matrix, ["input", "maxpool3x3", "conv1x1-bn-relu", "output"]))
            |conv1x1-bn-relu~0|output~1|
        """
        vertices = range(len(ops))
        if len(matrix) != len(ops) or any(len(row) != len(ops) for row in matrix):
            raise ValueError(
                f"Invalid matrix={matrix!r}: expected a row and a column for each of the {len(ops)} `ops`."
            )
        if any(matrix[start][end] for start in vertices for end in range(start + 1)):
            raise ValueError(f"Invalid matrix={matrix!r}: expected zeros on and below the diagonal.")
        if len(ops) < 2 or (ops[0], ops[-1]) != (_INPUT, _OUTPUT):
            raise ValueError(f"Invalid ops={ops!r}: expected {_INPUT!r} as the first and {_OUTPUT!r} as the last.")
        reached, leading = {0}, {vertices[-1]}
        for end in vertices:
            if any(matrix[start][end] for start in reached):
                reached.add(end)
        for start in reversed(vertices):
            if any(matrix[start][end] for end in leading):
                leading.add(start)
        kept = sorted(reached & leading)
        if len(kept) < 2:
            raise ValueError(f"Invalid matrix={matrix!r}: expected a path from the first to the last vertex.")
        inputs = (tuple(idx for idx, start in enumerate(kept) if matrix[start][end]) for end in kept[1:])
        return cls(tuple(ops[vertex] for vertex in kept[1:-1]), tuple(inputs))

    def __str__(self) -> str:
        vertices = zip((*self.ops, _OUTPUT), self.inputs, strict=True)
        return "".join(f"|{op}{''.join(f'~{start}' for start in inputs)}" for op, inputs in vertices) + "|"


@register_space("nas_bench_101")
class NASBench101(SearchSpace[NASBench101Arch]):
    """The 1,293,208 networks of NAS-Bench-101, for images of any size.

    A stem of one convolution; three stacks of three equal cells, 128, 256 and 512 wide; before the second and the third
    a maximum that halves the image; then the mean over the image and a linear layer.

    The benchmark counts 423,624, because it identifies cells that differ only in the numbering of their vertices. Here,
    they are different archs, because their networks can differ: if the channels of the output cannot be divided evenly
    among its vertices, those with lower numbers get one more.

    Example:
        >>> space = NASBench101()
        >>> arch = space.sample(random.Random(0))
        >>> print(arch)
        |maxpool3x3~0|maxpool3x3~1|maxpool3x3~1|conv3x3-bn-relu~2|conv1x1-bn-relu~2~3|output~1~4~5|
        >>> space.params(arch), space.macs(arch)
        (1452822, 216656320)

    Source:
        Ying et al., ICML 2019, arXiv:1902.09635; google-research/nasbench. Weights are drawn as there: those of
        convolutions from a normal distribution cut at two deviations and of variance 1 / fan-in, those of the linear
        layer after Glorot.
    """

    @property
    def size(self) -> int:
        """Number of archs: graphs whose vertices are numbered and have operations."""
        return _num_cells(vertex=1, unused=1, edges=0)

    def parse(self, text: str) -> NASBench101Arch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.

        Example:
            >>> NASBench101().parse("|conv3x3-bn-relu~0|maxpool3x3~0|output~2|")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 39 (from 0):
            expected '~0' or '~1', found '2'.
                |conv3x3-bn-relu~0|maxpool3x3~0|output~2|
                                                       ^
        """
        ops: list[str] = []
        inputs: Inputs = ()
        reader = Reader(text)
        reader.token(["|"])
        while _OUTPUT not in ops:
            steps = list(_steps(inputs))
            ops.append(reader.token(sorted({op for op, _ in steps})))
            starts: tuple[int, ...] = ()
            while True:
                fitting = [chosen for op, chosen in steps if op == ops[-1] and chosen[: len(starts)] == starts]
                following = sorted({chosen[len(starts)] for chosen in fitting if chosen != starts})
                token = reader.token([f"~{start}" for start in following] + ["|"] * (starts in fitting))
                if token == "|":
                    break
                starts = (*starts, int(token[1:]))
            inputs = (*inputs, starts)
        reader.end()
        return NASBench101Arch(tuple(ops[:-1]), inputs)

    def sample(self, rng: random.Random) -> NASBench101Arch:
        """Draw an arch uniformly at random."""
        ops: list[str] = []
        inputs: Inputs = ()
        while _OUTPUT not in ops:
            steps = _steps(inputs)
            ((op, starts),) = rng.choices(list(steps), list(steps.values()))
            ops.append(op)
            inputs = (*inputs, starts)
        return NASBench101Arch(tuple(ops[:-1]), inputs)

    def suggest(self, trial: Trial) -> NASBench101Arch:
        """Let an Optuna trial choose each vertex: its operation, or whether it is the output, and its edges.

        The choices have names like ``op_2`` and ``edge_0_2``. If only one value leads to an arch, the trial is not
        asked.
        """
        ops: list[str] = []
        inputs: Inputs = ()
        while _OUTPUT not in ops:
            vertex, steps = len(inputs) + 1, list(_steps(inputs))
            goes_on = any(op != _OUTPUT for op, _ in steps)
            ops.append(trial.suggest_categorical(f"op_{vertex}", (*OPS, _OUTPUT)) if goes_on else _OUTPUT)
            fitting = [chosen for op, chosen in steps if op == ops[-1]]
            for start in range(vertex):
                if len({start in chosen for chosen in fitting}) == 2:
                    taken = trial.suggest_categorical(f"edge_{start}_{vertex}", (False, True))
                    fitting = [chosen for chosen in fitting if (start in chosen) == taken]
            inputs = (*inputs, *fitting)
        return NASBench101Arch(tuple(ops[:-1]), inputs)

    def neighbours(self, arch: NASBench101Arch) -> Iterator[NASBench101Arch]:
        """Yield the archs that differ from this one in one choice.

        The choice is the operation of one vertex, the presence of one edge, or the presence of one vertex with one
        incoming and one outgoing edge. Every arch can be reached from every other.
        """
        changed = chain(_other_ops(arch), _other_edges(arch), _one_vertex_more(arch), _one_vertex_less(arch))
        for ops, inputs in dict.fromkeys(changed):
            if len(ops) <= _MAX_OPS and _is_cell(inputs):
                yield NASBench101Arch(ops, inputs)

    def depth(self, arch: NASBench101Arch) -> int:
        """Count the convolutions and the linear layer."""
        return len(_convs(arch, in_channels=3)) + 1

    def params(self, arch: NASBench101Arch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""
        return sum(conv.params() for conv in _convs(arch, in_channels)) + (_WIDTHS[-1] + 1) * num_classes

    def macs(self, arch: NASBench101Arch, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Arch of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Operations of convolutions and the linear layer, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If ``resolution`` is less than 1.
        """
        if resolution < 1:
            raise ValueError(f"Invalid resolution={resolution}: expected at least 1.")
        return sum(conv.macs(resolution) for conv in _convs(arch, in_channels)) + _WIDTHS[-1] * num_classes

    def build(self, arch: NASBench101Arch, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """
        modules: OrderedDict[str, nn.Module] = OrderedDict(stem=_conv_norm_relu(3, in_channels, _STEM_WIDTH))
        width = _STEM_WIDTH
        for stack, out_width in enumerate(_WIDTHS):
            if stack:
                # As with TensorFlow's padding "same": with an odd number of pixels, the last one is its own maximum.
                modules[f"pool{stack}"] = nn.MaxPool2d(2, ceil_mode=True)
            widths = (width, *[out_width] * _CELLS_PER_STACK)
            modules[f"stack{stack}"] = nn.Sequential(*(Cell(arch, *pair) for pair in pairwise(widths)))
            width = out_width
        head = nn.Linear(width, num_classes)
        nn.init.xavier_uniform_(head.weight)
        nn.init.zeros_(head.bias)
        modules["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        return nn.Sequential(modules)

    def blocks(self, arch: NASBench101Arch) -> tuple[str, ...]:
        """List the names of the nine cells, in order of execution."""
        return tuple(f"stack{stack}.{cell}" for stack in range(len(_WIDTHS)) for cell in range(_CELLS_PER_STACK))


class Cell(nn.Module):
    """A cell: each vertex applies its operation to the sum of what comes in, and the output concatenates it.

    Edges from the input of the cell pass through a projection, which is added at the output.

    Args:
        arch: The graph.
        width: Number of input channels.
        out_width: Number of output channels.
    """

    def __init__(self, arch: NASBench101Arch, width: int, out_width: int) -> None:
        super().__init__()
        self.inputs = arch.inputs
        self.widths = _vertex_widths(arch, out_width)
        vertices = zip(self.inputs, self.widths, strict=True)
        self.projections = nn.ModuleDict(
            {
                str(vertex): _conv_norm_relu(1, width, to)
                for vertex, (starts, to) in enumerate(vertices, 1)
                if 0 in starts
            }
        )
        self.ops = nn.ModuleList(_op(op, to) for op, to in zip(arch.ops, self.widths[:-1], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, width, H, W]`` to ``[N, out_width, H, W]``."""
        values = [x]  # outputs of the vertices
        for vertex, op in enumerate(self.ops, 1):
            # As published, the output of a vertex that is one channel wider loses its last channel.
            incoming = [values[start][:, : self.widths[vertex - 1]] for start in self.inputs[vertex - 1] if start]
            values.append(op(self._add_input(vertex, incoming, x)))
        outgoing = [values[start] for start in self.inputs[-1] if start]
        return self._add_input(len(values), [torch.cat(outgoing, dim=1)] if outgoing else [], x)

    def _add_input(self, vertex: int, incoming: list[Tensor], x: Tensor) -> Tensor:
        projected = [self.projections[str(vertex)](x)] if 0 in self.inputs[vertex - 1] else []
        return reduce(torch.add, incoming + projected)


def _op(op: str, width: int) -> nn.Module:
    match op:
        case "conv1x1-bn-relu" | "conv3x3-bn-relu":
            return _conv_norm_relu(_KERNELS[op], width, width)
        case _:
            return nn.MaxPool2d(3, stride=1, padding=1)


def _conv_norm_relu(kernel: int, inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    # Truncated at two deviations, a normal distribution keeps .8796 of its deviation: scipy.stats.truncnorm(-2,
    # 2).std().
    deviation = 1 / math.sqrt(kernel * kernel * inputs) / 0.87962566103423978
    nn.init.trunc_normal_(conv.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    # The published momentum of .997 is the weight of the old value, as in TensorFlow; torch uses that of the new value.
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-5, momentum=0.003), nn.ReLU())


def _vertex_widths(arch: NASBench101Arch, out_width: int) -> list[int]:
    """Find the channels of each vertex from 1 to the output."""
    output = len(arch.inputs)
    before_output = [start for start in arch.inputs[-1] if start]
    widths = {output: out_width}
    for idx, vertex in enumerate(before_output):
        share, remainder = divmod(out_width, len(before_output))
        widths[vertex] = share + (idx < remainder)
    for vertex in range(output - 1, 0, -1):
        if vertex not in widths:
            widths[vertex] = max(widths[end] for end, starts in enumerate(arch.inputs, 1) if vertex in starts)
    return [widths[vertex] for vertex in range(1, output + 1)]


def _convs(arch: NASBench101Arch, in_channels: int) -> list[Conv]:
    convs, width = [Conv(3, in_channels, _STEM_WIDTH)], _STEM_WIDTH
    for stack, out_width in enumerate(_WIDTHS):
        widths = _vertex_widths(arch, out_width)
        ops = [
            Conv(_KERNELS[op], to, to, stack) for op, to in zip(arch.ops, widths[:-1], strict=True) if op in _KERNELS
        ]
        projected = [to for starts, to in zip(arch.inputs, widths, strict=True) if 0 in starts]
        for cell_width in (width, *[out_width] * (_CELLS_PER_STACK - 1)):
            convs += ops + [Conv(1, cell_width, to, stack) for to in projected]
        width = out_width
    return convs


def _is_cell(inputs: Inputs) -> bool:
    earlier = all(
        starts and starts == tuple(sorted({*starts} & {*range(vertex)})) for vertex, starts in enumerate(inputs, 1)
    )
    return earlier and {*chain(*inputs)} == {*range(len(inputs))} and sum(map(len, inputs)) <= _MAX_EDGES


def _steps(inputs: Inputs) -> dict[tuple[str, tuple[int, ...]], int]:
    """Return the options for the next vertex, as operation and incoming edges, with the number of archs for each."""
    vertex, edges = len(inputs) + 1, sum(map(len, inputs))
    unused = {*range(vertex)} - {*chain(*inputs)}
    steps = {}
    for n in range(1, min(vertex, _MAX_EDGES - edges) + 1):
        for starts in combinations(range(vertex), n):
            left = len(unused.difference(starts))
            if not left:
                steps[_OUTPUT, starts] = 1
            if num_cells := _num_cells(vertex + 1, left + 1, edges + n):
                steps |= {(op, starts): num_cells for op in OPS}
    return steps


@cache
def _num_cells(vertex: int, unused: int, edges: int) -> int:
    """Count the archs that extend a graph without this vertex and all later ones.

    Args:
        vertex: Number of the next vertex.
        unused: Number of vertices without an outgoing edge so far.
        edges: Number of edges so far.
    """
    if vertex > _MAX_OPS + 1:
        return 0
    total = 0
    for from_unused, from_used in product(range(unused + 1), range(vertex - unused + 1)):
        all_edges = edges + from_unused + from_used
        if edges < all_edges <= _MAX_EDGES:
            after_op = len(OPS) * _num_cells(vertex + 1, unused - from_unused + 1, all_edges)
            as_output = from_unused == unused
            total += math.comb(unused, from_unused) * math.comb(vertex - unused, from_used) * (after_op + as_output)
    return total


def _other_ops(arch: NASBench101Arch) -> Iterator[tuple[tuple[str, ...], Inputs]]:
    for idx, kept in enumerate(arch.ops):
        for op in OPS:
            if op != kept:
                yield (*arch.ops[:idx], op, *arch.ops[idx + 1 :]), arch.inputs


def _other_edges(arch: NASBench101Arch) -> Iterator[tuple[tuple[str, ...], Inputs]]:
    for idx, starts in enumerate(arch.inputs):
        for start in range(idx + 1):
            yield arch.ops, (*arch.inputs[:idx], tuple(sorted({*starts} ^ {start})), *arch.inputs[idx + 1 :])


def _one_vertex_more(arch: NASBench101Arch) -> Iterator[tuple[tuple[str, ...], Inputs]]:
    for start, end in combinations(range(len(arch.inputs) + 1), 2):
        for vertex in range(start + 1, end + 1):
            inputs = [tuple(before + (before >= vertex) for before in starts) for starts in arch.inputs]
            inputs[end - 1] = tuple(sorted((*inputs[end - 1], vertex)))
            inputs.insert(vertex - 1, (start,))
            for op in OPS:
                yield (*arch.ops[: vertex - 1], op, *arch.ops[vertex - 1 :]), tuple(inputs)


def _one_vertex_less(arch: NASBench101Arch) -> Iterator[tuple[tuple[str, ...], Inputs]]:
    for vertex, starts in enumerate(arch.inputs[:-1], 1):
        if len(starts) == 1 and sum(vertex in others for others in arch.inputs) == 1:
            left = arch.inputs[: vertex - 1] + arch.inputs[vertex:]
            inputs = (tuple(before - (before > vertex) for before in others if before != vertex) for others in left)
            yield arch.ops[: vertex - 1] + arch.ops[vertex:], tuple(inputs)
