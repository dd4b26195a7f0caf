"""Where a cut would part nodes that runtimes fuse, which changes rounding and costs time.

Source: the graph transformers of ONNX Runtime (`onnxruntime/core/optimizer`: conv_*_fusion,
nchwc_transformer, matmul_add_fusion, matmul_scale_fusion, gelu_fusion, layer_norm_fusion,
skip_layer_norm_fusion, attention_fusion, the QDQ selectors), which fuse across a tensor that has
no other reader in almost all cases. NPU compilers fuse along the same lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from shoal_controlplane.planner.cuts.graph import Graph

MAX_SPAN = 64
"""Units between the ends of a group. To keep a wider one whole would forbid too many cuts; then
float sums may differ in their last bits."""

_ACTIVATIONS = frozenset(
    (
        *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Selu", "Celu", "Tanh"),
        *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Softplus"),
        *("Gelu", "FastGelu", "QuickGelu", "BiasGelu"),
    )
)
_WEIGHTED = frozenset(
    (
        *("Conv", "ConvTranspose", "FusedConv", "ConvInteger", "BatchNormalization"),
        *("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "MatMulInteger", "MatMulNBits"),
    )
)
_FOLDED = frozenset(("BatchNormalization", "Add", "Mul", "Sub", "Div", "Cast"))
_NORMS = frozenset(
    ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "ReduceMean")
)
_MATRIX = frozenset(("MatMul", "FusedMatMul"))


def forbidden_cuts(graph: Graph) -> list[bool]:
    """Whether a cut after each unit would part a group."""
    return _Groups(graph).forbidden()


class _Groups:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._units = graph.units
        self._opens = [0] * (len(graph.units) + 1)
        for index, unit in enumerate(graph.units):
            if unit.op in _WEIGHTED:
                self._epilogue(index)
            if unit.op in _ACTIVATIONS:
                self._gate(index)
            self._prologue(index)
            self._quantised(index)
            if unit.op in ("Erf", "Tanh"):
                self._gelu(index)
            elif unit.op == "Sqrt":
                self._norm(index)
            elif unit.op == "Softmax":
                self._attention(index)

    def forbidden(self) -> list[bool]:
        depth, result = 0, []
        for change in self._opens[:-1]:
            depth += change
            result.append(depth > 0)
        return result

    def _tie(self, one: int, other: int) -> None:
        first, last = min(one, other), max(one, other)
        if last - first <= MAX_SPAN:
            self._opens[first] += 1
            self._opens[last] -= 1

    def _op(self, index: int) -> str:
        return self._units[index].op

    def _makers(self, index: int) -> list[int]:
        made = self._graph.made
        return list(dict.fromkeys(made[n] for n in self._units[index].takes if n in made))

    def _users(self, index: int) -> list[int]:
        used = self._graph.used
        return list(dict.fromkeys(user for n in self._units[index].gives for user in used[n]))

    def _sole_user(self, index: int) -> int | None:
        gives = self._units[index].gives
        return self._graph.sole_user(gives[0]) if len(gives) == 1 else None

    def _epilogue(self, index: int) -> None:
        """Bias, scale, BatchNormalization, one residual Add and the activation join a product."""
        while True:
            for user in self._users(index):
                if self._op(user) in _ACTIVATIONS:
                    self._tie(index, user)
            sole = self._sole_user(index)
            if sole is None or self._op(sole) not in _FOLDED:
                return
            self._tie(index, sole)
            if len(self._units[sole].takes) > 1:
                for after in self._users(sole):
                    if self._op(after) in _ACTIVATIONS:
                        self._tie(sole, after)
                return
            index = sole

    def _gate(self, index: int) -> None:
        """Swish and its like: x times an activation of x."""
        for user in self._users(index):
            if self._op(user) == "Mul" and set(self._units[index].takes) <= set(
                self._units[user].takes
            ):
                self._tie(index, user)

    def _prologue(self, index: int) -> None:
        """What goes before: padding of a convolution, transposition and scale of a factor, the
        residual Add before a normalisation that alone reads it."""
        op, user = self._op(index), self._sole_user(index)
        if op == "Add" and not self._is_output(index):
            ops = {self._op(reader) for reader in self._users(index)}
            if ops & _NORMS and ops <= _NORMS | {"Sub"}:
                for reader in self._users(index):
                    self._tie(index, reader)
        elif user is not None:
            scale = op in ("Mul", "Div") and len(self._units[index].takes) == 1
            if (self._op(user) in _MATRIX and (op == "Transpose" or scale)) or (
                op == "Pad" and self._op(user) == "Conv"
            ):
                self._tie(index, user)

    def _is_output(self, index: int) -> bool:
        end = len(self._units)
        return any(self._graph.last_use(name) == end for name in self._units[index].gives)

    def _quantised(self, index: int) -> None:
        """What stands between DequantizeLinear and QuantizeLinear is computed in integers, and
        integers are what should cross a cut."""
        op = self._op(index)
        if op in ("DequantizeLinear", "DynamicQuantizeLinear"):
            for user in self._users(index):
                self._tie(index, user)
        elif op == "QuantizeLinear":
            for maker in self._makers(index):
                self._tie(index, maker)

    def _walk(self, index: int, ops: Iterable[str], steps: int, *, up: bool) -> list[int]:
        """Units reached through those with an operator of `ops`, at most `steps` away."""
        found: dict[int, None] = {}
        front = [index]
        for _ in range(steps):
            near = [n for i in front for n in (self._makers(i) if up else self._users(i))]
            front = [n for n in dict.fromkeys(near) if self._op(n) in ops and n not in found]
            found |= dict.fromkeys(front)
        return list(found)

    def _tie_all(self, indices: Iterable[int]) -> None:
        group = sorted(indices)
        for one, other in pairwise(group):
            self._tie(one, other)

    def _gelu(self, index: int) -> None:
        """x / 2 * (1 + erf(x / sqrt(2))), or the form with tanh, with a bias added before."""
        after = self._walk(index, ("Add", "Mul"), 3, up=False)
        if "Add" not in {self._op(user) for user in self._users(index)} or not after:
            return
        steps = 2 if self._op(index) == "Erf" else 5
        before = self._walk(index, ("Div", "Mul", "Add", "Pow"), steps, up=True)
        halves = [m for user in after for m in self._makers(user) if self._op(m) in ("Mul", "Div")]
        self._tie_all({index, *after, *before, *halves})

    def _norm(self, index: int) -> None:
        """(x - mean) / sqrt(variance + epsilon) * gamma + beta, or without the mean."""
        before = self._walk(index, ("Add", "ReduceMean", "Pow", "Cast"), 4, up=True)
        squares = [i for i in before if self._op(i) in ("ReduceMean", "Pow")]
        if not squares:
            return
        for square in squares:
            # A square by multiplication, and what is subtracted before.
            before += self._walk(square, ("Mul", "Sub"), 2, up=True)
        means = [m for i in before if self._op(i) == "Sub" for m in self._makers(i)]
        before += [i for i in means if self._op(i) == "ReduceMean"]
        after = self._walk(index, ("Reciprocal", "Div"), 2, up=False)
        for last in list(after):
            after += self._chain(last, ("Mul", "Cast", "Add"))
        self._tie_all({index, *before, *after})

    def _chain(self, index: int, ops: Iterable[str]) -> list[int]:
        """Units with an operator of `ops` that follow one another, each with constants alone."""
        found: list[int] = []
        user = self._sole_user(index)
        while user is not None and self._op(user) in ops and len(found) < 4:
            if self._op(user) == "Add" and len(self._units[user].takes) > 1:
                break
            found.append(user)
            user = self._sole_user(user)
        return found

    def _attention(self, index: int) -> None:
        """From the projections of queries, keys and values to that of the result."""
        scores = self._path_up(index, ("Add", "Where", "Div", "Mul", "Cast"), 4)
        after = self._walk(index, ("MatMul",), 1, up=False)
        if not scores or not after:
            return
        group = {index, *scores, *after}
        moves = ("Transpose", "Reshape", "Mul", "Div", "Add", "Split", "Gather", "Squeeze", "Slice")
        for product in [i for i in group if self._op(i) == "MatMul"]:
            for maker in self._makers(product):
                if maker != index:
                    group.update(self._path_up(maker, moves, 6, start=True))
        for product in after:
            group.update(
                self._walk(product, ("Transpose", "Reshape", "MatMul", "Gemm"), 3, up=False)
            )
        first = min(group)
        self._tie_all(i for i in group if i - first <= MAX_SPAN)

    def _path_up(
        self, index: int, through: Iterable[str], steps: int, *, start: bool = False
    ) -> set[int]:
        """The units on the ways up to the nearest matrix products. A mask, which comes from an
        input through the same operators, is on none."""
        if start:
            if self._op(index) in ("MatMul", "Gemm"):
                return {index}
            if self._op(index) not in through:
                return set()
        found: set[int] = set()
        if steps:
            for maker in self._makers(index):
                found |= self._path_up(maker, through, steps - 1, start=True)
        return found | {index} if found and start else found
