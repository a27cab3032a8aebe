"""Reads ONNX files, as data: no code in one can run, and it takes no more than it may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from crashsim.errors import ArgumentError, CrashsimError, FileError, MissingExtraError
from crashsim.files.limits import check_size, most_bytes, opened, size_on_disk
from crashsim.files.onnx_graphs.batches import is_free, of_any_batch
from crashsim.files.onnx_graphs.branches import put_in_place
from crashsim.files.onnx_graphs.building import Branch, Graph, RawNode, build
from crashsim.files.onnx_graphs.network import Input, OnnxNetwork
from crashsim.files.onnx_graphs.node import Constant
from crashsim.files.onnx_graphs.operators.arithmetic import DTYPES
from crashsim.files.onnx_graphs.tensors import Tensors

_OLDEST = 7  # opset, since which arithmetic broadcasts
_INITIALISED = 4  # version of the format, since which what a file holds is no input besides
_SMALL = 4096  # numbers that are left where shapes are worked out
_MOST_BRANCHES = 2000
_TIMES = 4  # of its length on disk, that a file takes while it is read


def read_onnx(
    path: str | Path,
    fixed: Mapping[str, Any] = MappingProxyType({}),
    sizes: Mapping[str, Sequence[int | None]] = MappingProxyType({}),
) -> OnnxNetwork:
    """The torch network of an ONNX file, in evaluation mode.

    Every node becomes a module of its name, and weights become parameters. A file that was made for
    a fixed number of examples is read for any, where its graph treats each by itself.

    Args:
        path: of the ``.onnx`` file; weights may lie in other files of its folder.
        fixed: inputs that are always the same, by name: a tensor, or a number for all places
            (one along an axis of any length).
        sizes: of the axes of inputs that the file leaves open, by name; None where any will do.

    Raises:
        FileError: no readable model, an operator that is not supported (the message names the
            node), weights outside the folder, or more memory than a file may take.
        ArgumentError: ``fixed`` or ``sizes`` names no input, or has another number of axes.
        MissingExtraError: the package ``onnx`` is not installed.
    """
    subject = f"model={str(path)!r}"
    model = _parsed(subject, path)
    allowed = max(most_bytes(), _TIMES * size_on_disk(path))
    tensors = Tensors(subject, Path(path).parent, allowed)
    try:
        return network_of(model, subject, tensors, fixed, sizes)
    except CrashsimError:
        raise
    except Exception as error:  # a damaged one fails in many ways, in texts that are none too
        raise FileError(
            f"{subject} is not a sound ONNX model ({type(error).__name__}: {error}); export it anew"
        ) from error


def network_of(
    model: Any,
    subject: str,
    tensors: Tensors,
    fixed: Mapping[str, Any] = MappingProxyType({}),
    sizes: Mapping[str, Sequence[int | None]] = MappingProxyType({}),
) -> OnnxNetwork:
    """The network of a parsed model, which is changed.

    Args:
        model: an ``onnx.ModelProto``.
        subject: what errors call it.
        tensors: reads what it holds.
        fixed, sizes: as ``read_onnx`` takes them.
    """
    versions = _versions(model, subject)
    _refuse_sparse(model.graph, subject)
    constants = _take_constants(model.graph, tensors)
    model.ir_version = max(model.ir_version, _INITIALISED)
    _fix(model.graph, constants, fixed, subject)
    _fix_sizes(model.graph, sizes, subject)
    model = _plain(model, subject)
    constants.update(_take_constants(model.graph, tensors))
    for _ in range(_MOST_BRANCHES):
        try:
            return _built(model, constants, versions, subject)
        except Branch as branch:
            put_in_place(model.graph, branch.name, branch.taken)
            constants.update(_take_constants(model.graph, tensors))
    raise FileError(f"{subject} has more than {_MOST_BRANCHES:,} branches; give a smaller one")


def _built(
    model: Any, constants: dict[str, Constant], versions: Mapping[str, int], subject: str
) -> OnnxNetwork:
    free = of_any_batch(model, constants)
    if free is not None:
        batch, changed = free
        try:
            network = build(_graph(changed, constants, versions, subject, batch))
            if is_free(network, batch):
                return network
        except Branch:
            raise
        except Exception:  # whatever stands in the way
            pass
    return build(_graph(model, constants, versions, subject, None))


def _parsed(subject: str, path: str | Path) -> Any:
    remedy = "give an .onnx file"
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtraError(
            f"{subject}: ONNX files need `pip install crashsim[onnx]`"
        ) from error
    with opened(subject, path, remedy) as file:
        length = Path(path).stat().st_size
        allowed = max(most_bytes(), _TIMES * size_on_disk(path))
        check_size(subject, _TIMES * length, "give a smaller one", allowed=allowed)
        content = file.read(length)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, RecursionError, MemoryError, ValueError) as error:
        raise FileError(f"{subject} is not an ONNX model ({error}); {remedy}") from error
    if not model.HasField("graph") or not model.graph.node:
        raise FileError(f"{subject} holds no graph of nodes; {remedy}")
    return model


def _versions(model: Any, subject: str) -> dict[str, int]:
    """Of each set of operators that the model uses."""
    found = {entry.domain: int(entry.version) for entry in model.opset_import}
    found[""] = found.get("", found.pop("ai.onnx", 0))
    newest = _newest()
    if not _OLDEST <= found[""] <= newest:
        raise FileError(
            f"{subject} is of opset {found['']}; those from {_OLDEST} to {newest} are read: "
            "convert it with onnx.version_converter, or install a newer onnx"
        )
    return found


def _newest() -> int:
    import onnx

    return int(onnx.defs.onnx_opset_version())


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)
            for inner in attribute.graphs:
                yield from graphs_of(inner)


def _refuse_sparse(graph: Any, subject: str) -> None:
    for each in graphs_of(graph):
        if each.sparse_initializer:
            raise FileError(
                f"{subject} holds sparse weights, which are not read; export it with dense ones"
            )


def _take_constants(graph: Any, tensors: Tensors) -> dict[str, Constant]:
    """What a graph holds, by name; Constant nodes are taken out of it.

    Large tensors are taken out too, and stand as inputs of their shape: what follows looks at
    shapes alone.
    """
    import onnx

    found: dict[str, Constant] = {}
    for proto in graph.initializer:
        tensor = tensors.read(proto)
        is_words = tensor.dtype in (torch.int8, torch.uint8) and tensor.dim() > 1
        is_weight = tensor.is_floating_point() and tensor.dim() > 0
        found[proto.name] = Constant(tensor, is_weight or is_words)
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.domain]
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain and node.output:
            tensor = _constant_of(node, tensors)
            is_weight = tensor.is_floating_point() and tensor.dim() > 0 and tensor.numel() > 1
            found[node.output[0]] = Constant(tensor, is_weight)
    del graph.node[:]
    graph.node.extend(nodes)
    given = {value.name for value in graph.input}
    del graph.initializer[:]
    for name, constant in found.items():
        tensor = constant.tensor
        if tensor.numel() <= _SMALL and tensor.dtype not in (torch.bfloat16,):
            graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
        elif name not in given:
            code = next(c for c, dtype in DTYPES.items() if dtype == tensor.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, code, list(tensor.shape)))
    return found


def _constant_of(node: Any, tensors: Tensors) -> Tensor:
    for attribute in node.attribute:
        if attribute.name == "value":
            return tensors.read(attribute.t)
        if attribute.name in ("value_float", "value_floats"):
            value: Any = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            return torch.tensor(value, dtype=torch.float32)
        if attribute.name in ("value_int", "value_ints"):
            value = attribute.i if attribute.name == "value_int" else list(attribute.ints)
            return torch.tensor(value, dtype=torch.int64)
    name = node.name or node.output[0]
    raise FileError(f"node {name!r} (Constant) holds no tensor of numbers; export it anew")


def _fix(
    graph: Any, constants: dict[str, Constant], fixed: Mapping[str, Any], subject: str
) -> None:
    """Makes constants of the inputs that are always the same."""
    import onnx

    asked = {value.name: value for value in graph.input if value.name not in constants}
    for name, given in fixed.items():
        if name not in asked:
            raise ArgumentError(f"fixed={name!r}: {subject} asks for {sorted(asked)}; name one")
        wanted = _input(asked[name], subject)
        try:
            tensor = torch.as_tensor(given).to(wanted.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"fixed={name!r}: {given!r} is no tensor ({error})") from error
        if wanted.sizes is not None and not tensor.dim():
            tensor = tensor.expand([1 if n is None else n for n in wanted.sizes]).contiguous()
        if wanted.sizes is not None and len(wanted.sizes) != tensor.dim():
            raise ArgumentError(
                f"fixed={name!r} has {tensor.dim()} axes; {subject} takes {len(wanted.sizes)}"
            )
        constants[name] = Constant(tensor)
        graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name))


def _fix_sizes(graph: Any, sizes: Mapping[str, Sequence[int | None]], subject: str) -> None:
    """Writes the lengths of axes into the graph."""
    asked = {value.name: value for value in graph.input}
    for name, given in sizes.items():
        if name not in asked:
            raise ArgumentError(f"sizes={name!r}: {subject} asks for {sorted(asked)}; name one")
        kind = asked[name].type.tensor_type
        own = _sizes(kind)
        if own is not None and (
            len(own) != len(given)
            or any(None not in (a, b) and a != b for a, b in zip(own, given, strict=True))
        ):
            raise ArgumentError(f"sizes={name!r}: {tuple(given)} does not fit {own} of {subject}")
        if own is None:
            kind.shape.dim.extend(type(kind.shape).Dimension() for _ in given)
        for dim, size in zip(kind.shape.dim, given, strict=True):
            if size is not None:
                dim.dim_value = size


def _plain(model: Any, subject: str) -> Any:
    """The model without functions of its own, and checked."""
    import onnx
    from onnx import checker, inliner

    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        checker.check_model(model)
    except Exception as error:  # of onnx's own kinds, and of protobuf's
        raise FileError(
            f"{subject} is not a sound ONNX model ({next(iter(str(error).splitlines()), '')}); "
            "export it anew"
        ) from error
    assert isinstance(model, onnx.ModelProto)
    return model


def _graph(
    model: Any,
    constants: Mapping[str, Constant],
    versions: Mapping[str, int],
    subject: str,
    batch: int | None,
) -> Graph:
    inputs = [_input(v, subject) for v in model.graph.input if v.name not in constants]
    nodes = [_raw(node, versions, subject) for node in model.graph.node]
    outputs = [value.name for value in model.graph.output]
    return Graph(subject, nodes, inputs, outputs, constants, _known(model), batch)


def _input(value: Any, subject: str) -> Input:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
        raise FileError(
            f"{subject}: its input {value.name!r} is no tensor of numbers; export it without "
            "sequences, maps and texts"
        )
    return Input(value.name, DTYPES[kind.elem_type], _sizes(kind))


def _sizes(kind: Any) -> tuple[int | None, ...] | None:
    """Of the axes; None for those that are named or left open."""
    if not kind.HasField("shape"):
        return None
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else None
        for d in kind.shape.dim
    )


def _raw(node: Any, versions: Mapping[str, int], subject: str) -> RawNode:
    domain = "" if node.domain == "ai.onnx" else node.domain
    operator = f"{domain}.{node.op_type}" if domain else node.op_type
    if not node.output:
        raise FileError(f"{subject}: node {node.name!r} ({operator}) gives nothing")
    attributes = {
        attribute.name: _attribute(attribute, subject, node.name)
        for attribute in node.attribute
        if not attribute.HasField("g") and not attribute.graphs
    }
    version = versions.get(domain, 1)
    return RawNode(operator, node.name, version, tuple(node.input), tuple(node.output), attributes)


def _attribute(attribute: Any, subject: str, node: str) -> Any:
    from onnx import AttributeProto, helper

    if attribute.type == AttributeProto.TENSOR:
        return Tensors(f"{subject}: node {node!r}", None, most_bytes()).read(attribute.t)
    try:
        value = helper.get_attribute_value(attribute)
    except ValueError as error:
        raise FileError(f"{subject}: node {node!r}: {error}") from error
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]
    return value


def _known(model: Any) -> dict[str, tuple[tuple[int | None, ...] | None, torch.dtype | None]]:
    """Sizes and types of values, as onnx works them out from the operators.

    What the file itself says of values between its inputs and outputs is not believed.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # of onnx's own kinds: the operators tell what they lack
        inferred = bare
    graph = inferred.graph
    return {
        value.name: (_sizes(value.type.tensor_type), DTYPES.get(value.type.tensor_type.elem_type))
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def files_beside(path: str | Path) -> list[Path]:
    """The files of weights that an ONNX file names, as far as it can be read."""
    try:
        model = _parsed(f"model={str(path)!r}", path)
    except CrashsimError:
        return []
    names = {
        entry.value
        for graph in graphs_of(model.graph)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [Path(path).parent / name for name in sorted(names)]
