"""A policy as an ONNX graph, made of the same description as the file for NumPy.

It has an input for each part of an observation that is seen, an output for each part of an action, and memory as both.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from trpo.deploy.description import Arrays, Description
from trpo.deploy.policy import MASK, Leaf, choices, leaves, parts_of
from trpo.envs.protocol import MissingExtraError

OPSET, IR_VERSION = 17, 8
"""Of 2022: what runs graphs has had time to learn them."""
BATCH = "N"
_DOUBLE = np.dtype(np.float64)


def require_onnx() -> None:
    """Raise MissingExtraError where the package that makes graphs is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("exporting .onnx needs pip install 'trpo[onnx]'; .npz needs nothing") from error


def onnx_bytes(description: Description) -> bytes:
    """Return the graph of a policy, checked by ONNX's own checker."""
    import onnx

    graph = Graph()
    _policy(graph, description.about, description.arrays)
    helper = onnx.helper
    made = helper.make_graph(graph.nodes, "policy", graph.inputs, graph.outputs, graph.constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION, producer_name="trpo")
    helper.set_model_props(model, {"trpo": json.dumps(description.about)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


class Graph:
    """A graph that grows: values are called by their names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Add an array."""
        import onnx

        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(np.asarray(array, dtype)), name))
        return name

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator of ONNX; return its result."""
        import onnx

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def cast(self, x: str, dtype: Any) -> str:
        """Add a conversion to another type."""
        import onnx

        return self("Cast", x, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def columns(self, x: str, begin: int, end: int) -> str:
        """Add a choice of columns."""
        return self("Slice", x, *(self.constant([number], np.int64) for number in (begin, end, 1)))

    def joined(self, parts: list[str]) -> str:
        """Add what puts columns side by side."""
        return parts[0] if len(parts) == 1 else self("Concat", *parts, axis=1)

    def dense(self, x: str, weight: Any, bias: Any) -> str:
        """Add x W + b."""
        return self("Gemm", x, self.constant(weight), self.constant(bias))

    def input(self, name: str, dtype: Any, shape: tuple[int, ...]) -> str:
        """Add an input of a batch."""
        self.inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, x: str, dtype: Any, shape: tuple[int, ...]) -> None:
        """Add an output of a batch, in its shape."""
        rows = self("Reshape", x, self.constant([-1, *shape], np.int64))
        self.nodes[-1].output[0] = name
        assert rows != name
        self.outputs.append(_value(name, dtype, shape))


def _value(name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, [BATCH, *shape])


def _policy(graph: Graph, about: dict[str, Any], arrays: Arrays) -> None:
    """Add all that :class:`trpo.deploy.policy.Policy` does, in its order."""
    dtype = arrays["layer.0.weight"].dtype
    parts = list(leaves(about["observation"]))
    seen: dict[int, str] = {}
    for i in sorted({encoder["part"] for encoder in about["encoders"]}):
        given = graph.input(parts[i].name, parts[i].dtype, parts[i].shape)
        statistics = [arrays[f"observation.{i}.{row}"] for row in ("mean", "scale") if i in about["normalised"]]
        seen[i] = _numbers(graph, parts[i], given, statistics, about["clip"], dtype)
    features = []
    for i, encoder in enumerate(about["encoders"]):
        encode = _row if encoder["kind"] == "row" else _convolutions
        features.append(encode(graph, encoder, seen[encoder["part"]], arrays, f"encoder.{i}.", dtype))
    x, last = graph.joined(features), about["layers"] - 1
    for i in range(about["layers"]):
        x = graph.dense(x, arrays[f"layer.{i}.weight"], arrays[f"layer.{i}.bias"])
        if i < last:
            x = graph({"tanh": "Tanh", "relu": "Relu"}[about["activation"]], x)
    if about["memory"]:
        x = _memory(graph, about["memory"], x, arrays, dtype)
    mask = None
    if about["masked"]:
        size = sum(choices(about["action"]))
        kind = next(part.dtype for part in parts if part.name == MASK)
        names = {value.name for value in graph.inputs}
        mask = graph.cast(MASK if MASK in names else graph.input(MASK, kind, (size,)), bool)
    _head(graph, about["head"], about["action"], arrays, "action.", "action", x, mask)


# ---------------------------------------------------------------- observations


def _numbers(graph: Graph, leaf: Leaf, x: str, statistics: list[Any], clip: float | None, dtype: Any) -> str:
    if leaf.kind in ("choice", "choices"):
        rows = graph("Flatten", graph.cast(x, np.int64), axis=1)
        hot = []
        for i, (n, start) in enumerate(zip(leaf.sizes, leaf.starts, strict=True)):
            numbers = graph.constant(np.arange(start, start + n)[None], np.int64)
            hot.append(graph("Equal", graph.columns(rows, i, i + 1), numbers))
        x = graph.cast(graph.joined(hot), dtype)
    elif leaf.dtype != dtype:
        x = graph.cast(x, dtype)
    if statistics:
        mean, scale = (graph.constant(row[None]) for row in statistics)
        x = graph("Mul", graph("Sub", x, mean), scale)
        if clip is not None:
            x = graph("Clip", x, graph.constant(-clip, dtype), graph.constant(clip, dtype))
    return x


def _row(graph: Graph, encoder: dict[str, Any], x: str, arrays: Arrays, name: str, dtype: Any) -> str:
    x = graph.columns(graph("Flatten", x, axis=1), encoder["begin"], encoder["end"])
    return x if encoder["unit"] == 1 else graph("Div", x, graph.constant(encoder["unit"], dtype))


def _convolutions(graph: Graph, encoder: dict[str, Any], x: str, arrays: Arrays, name: str, dtype: Any) -> str:
    x = graph("Div", x, graph.constant(encoder["unit"], dtype))
    if encoder["grey"]:
        x = graph("Unsqueeze", x, graph.constant([1], np.int64))
    elif not encoder["channels_first"]:
        x = graph("Transpose", x, perm=[0, 3, 1, 2])
    height, width = encoder["height"], encoder["width"]
    for i, stride in enumerate(encoder["strides"]):
        kernel, bias = arrays[f"{name}kernel.{i}"], arrays[f"{name}kernel.{i}.bias"]
        height, width = ((side - n) // stride + 1 for side, n in zip((height, width), kernel.shape[:2], strict=True))
        weight = graph.constant(kernel.transpose(3, 2, 0, 1))
        x = graph("Relu", graph("Conv", x, weight, graph.constant(bias), strides=[stride, stride]))
    weight, units = arrays[f"{name}weight"], arrays[f"{name}bias"].size
    weight = weight.reshape(height, width, -1, units).transpose(2, 0, 1, 3).reshape(-1, units)  # as ONNX has channels
    return graph("Relu", graph.dense(graph("Flatten", x, axis=1), weight, arrays[f"{name}bias"]))


# ---------------------------------------------------------------- memory


def _memory(graph: Graph, cell: str, p: str, arrays: Arrays, dtype: Any) -> str:
    m, gates = arrays["memory.weight"].shape
    h = graph.input("carry/h", dtype, (m,))
    q = graph("MatMul", h, graph.constant(arrays["memory.weight"]))

    def sigmoid(x: str) -> str:
        return graph("Sigmoid", x)

    if cell == "gru":
        both = sigmoid(graph("Add", graph.columns(p, 0, 2 * m), graph.columns(q, 0, 2 * m)))
        z, r = graph.columns(both, 0, m), graph.columns(both, m, 2 * m)
        own = graph("Mul", r, graph.columns(q, 2 * m, gates))
        n = graph("Tanh", graph("Add", graph.columns(p, 2 * m, gates), own))
        after = {"h": graph("Add", n, graph("Mul", z, graph("Sub", h, n)))}
    else:
        c, a = graph.input("carry/c", dtype, (m,)), graph("Add", p, q)
        i, f, o = (sigmoid(graph.columns(a, k * m, (k + 1) * m)) for k in range(3))
        new = graph("Mul", i, graph("Tanh", graph.columns(a, 3 * m, gates)))
        c = graph("Add", graph("Mul", f, c), new)
        after = {"h": graph("Mul", o, graph("Tanh", c)), "c": c}
    for name, x in after.items():
        graph.output(f"next_carry/{name}", x, dtype, (m,))
    return graph.dense(after["h"], arrays["after.weight"], arrays["after.bias"])


# ---------------------------------------------------------------- actions


def _head(
    graph: Graph, head: dict[str, Any], space: dict[str, Any], arrays: Arrays, name: str, out: str, x: str, mask: Any
) -> None:
    if head["kind"] == "product":
        spaces, begin, first = dict(parts_of(space)), 0, 0
        for i, (key, part) in enumerate(zip(head["names"] or spaces, head["parts"], strict=True)):
            own, begin = graph.columns(x, begin, begin + part["size"]), begin + part["size"]
            size = sum(choices(spaces[key]))
            allowed, first = (graph.columns(mask, first, first + size) if mask and size else None), first + size
            _head(graph, part, spaces[key], arrays, f"{name}{i}.", f"{out}/{key}", own, allowed)
        return
    dtype, shape = np.dtype(space["dtype"]), tuple(space["shape"])
    if head["kind"] == "categorical":
        if mask:
            x = graph("Where", mask, x, graph.constant(-math.inf, arrays["layer.0.weight"].dtype))
        value = _chosen(graph, choices(space), space["start"], x)
    elif head["kind"] == "bernoulli":
        value = graph("Greater", x, graph.constant(0, arrays["layer.0.weight"].dtype))
    else:
        value = _box(graph, head, x, arrays, name, dtype)
    graph.output(out, graph.cast(value, dtype), dtype, shape)


def _chosen(graph: Graph, sizes: list[int], start: Any, x: str) -> str:
    chosen, begin = [], 0
    for n in sizes:
        chosen.append(graph("ArgMax", graph.columns(x, begin, begin + n), axis=1, keepdims=1))
        begin += n
    return graph("Add", graph.joined(chosen), graph.constant(np.atleast_1d(start)[None], np.int64))


def _box(graph: Graph, head: dict[str, Any], x: str, arrays: Arrays, name: str, dtype: np.dtype) -> str:
    rows = {row: arrays[f"{name}{row}"][None] for row in ("low", "high", "middle", "half")}
    d = rows["low"].shape[1]
    if head["kind"] == "beta":
        logs = _log_softplus(graph, graph("Add", graph.cast(x, _DOUBLE), graph.constant(head["offset"], _DOUBLE)))
        gap = graph("Sub", graph.columns(logs, 0, d), graph.columns(logs, d, 2 * d))
        x = graph("Tanh", graph("Mul", gap, graph.constant(0.5, _DOUBLE)))
    else:
        x = graph.columns(x, 0, d)
        x = graph.cast(graph("Tanh", x) if head["kind"] == "squashed" else x, _DOUBLE)
    half, middle, low, high = (graph.constant(rows[row]) for row in ("half", "middle", "low", "high"))
    value = graph("Add", graph("Mul", x, half), middle)
    value = graph("Where", graph("IsNaN", value), graph.constant(0.0, _DOUBLE), value)
    value = graph("Min", graph("Max", value, low), high)
    if dtype.kind == "f":
        return value
    value = graph("Round", value)
    if dtype.kind not in "iu" or dtype.itemsize < 8:
        return value
    value = graph.cast(value, dtype)  # a double cannot hold every bound of 64 bits
    least, most = (graph.constant(arrays[f"{name}{row}"][None]) for row in ("least", "most"))
    return graph("Min", graph("Max", value, least), most)


def _log_softplus(graph: Graph, x: str) -> str:
    """Add log(log(1 + eˣ)) in double precision, which is x where eˣ is next to nothing."""
    positive, rest = graph("Relu", x), graph("Exp", graph("Neg", graph("Abs", x)))
    softplus = graph("Add", positive, graph("Log", graph("Add", rest, graph.constant(1.0, _DOUBLE))))
    small = graph("Less", x, graph.constant(-16.0, _DOUBLE))
    safe = graph("Where", small, graph.constant(1.0, _DOUBLE), softplus)
    return graph("Where", small, x, graph("Log", safe))
