"""A model repository for Triton's Python backend: written from an ONNX graph, and validated before a server reads "
"it."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

from labsupport import export, files
from labsupport.errors import BadInput, at_least

TYPES = {"fp32": "TYPE_FP32", "fp16": "TYPE_FP16", "int64": "TYPE_INT64"}
MODEL_PY = textwrap.dedent('''\
    """Runs model.onnx for whole batches; Triton starts this in a process of its own, once for each instance."""

    import os
    import sys

    sys.path[:0] = os.environ["LABSUPPORT_TRITON_PATH"].split(os.pathsep)  # the backend knows no environments

    import numpy as np
    import onnxruntime as ort
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def initialize(self, args):
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self.input, self.output = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

        def execute(self, requests):
            """One response a request; the requests are those that the dynamic batcher put together."""
            parts = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
            (answers,) = self.session.run([self.output], {self.input: np.concatenate(parts)})
            split = np.split(answers, np.cumsum([len(part) for part in parts])[:-1])
            return [pb_utils.InferenceResponse([pb_utils.Tensor(self.output, part)]) for part in split]
    ''')


def write(
    folder: str | Path,
    graph,
    *,
    name: str = "signs",
    version: int = 1,
    max_batch: int = 16,
    delay_us: int = 2000,
    max_waiting: int = 64,
    instances: int = 1,
) -> Path:
    """Write ``folder/name/config.pbtxt`` and one version of the model beside it; the folder comes back.

    ``graph`` is an OnnxGraph or a path, with one input and one output and a free first axis. ``delay_us``: how long a
    batch may wait for more; ``max_waiting``: how many requests may wait. Raises BadInput.
    Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
    """
    graph = export.load(graph)
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise BadInput(f"name={name!r}; a model's name is a folder's name: letters, digits and '_'")
    for what, value in {"version": version, "max_batch": max_batch, "instances": instances}.items():
        at_least(**{what: value})
    (source, (shape_in, type_in)), (target, (shape_out, type_out)) = _only(graph.inputs), _only(graph.outputs)
    model = Path(folder) / name
    (model / str(version)).mkdir(parents=True, exist_ok=True)
    config = f"""\
        name: "{name}"
        backend: "python"
        max_batch_size: {max_batch}
        input [ {{ name: "{source}" data_type: {TYPES[type_in]} dims: [ {_dims(shape_in)} ] }} ]
        output [ {{ name: "{target}" data_type: {TYPES[type_out]} dims: [ {_dims(shape_out)} ] }} ]
        instance_group [ {{ kind: KIND_CPU count: {instances} }} ]
        dynamic_batching {{
          max_queue_delay_microseconds: {delay_us}
          default_queue_policy {{ max_queue_size: {max_waiting} }}
        }}
        version_policy {{ latest {{ num_versions: 1 }} }}
        """
    files.replace(model / "config.pbtxt", textwrap.dedent(config).encode())
    files.replace(model / str(version) / "model.py", MODEL_PY.encode())
    shutil.copyfile(graph.path, model / str(version) / "model.onnx")
    return Path(folder)


def validate(folder: str | Path) -> list[str]:
    """Names of the models in a repository, each compared with its ONNX file. Raises BadInput for the first fault.

    Triton's Python backend believes the configuration: a wrong shape is found when the first request fails. This finds
    it before the server starts.
    """
    folder = Path(folder)
    configs = sorted(folder.glob("*/config.pbtxt"))
    if not configs:
        raise BadInput(
            f"{folder.name} has no MODEL/config.pbtxt; write one with triton_repository.write(folder, graph)"
        )
    for path in configs:
        _validate(path)
    return [path.parent.name for path in configs]


def parsed(text: str) -> dict[str, list]:
    """A protobuf text file as name → values, in order; a message is such a mapping, too. Raises BadInput."""
    tokens = re.findall(r'"[^"]*"|[\[\]{}:,]|[^\s\[\]{}:,#"]+', re.sub(r"#.*", "", text))
    fields, rest = _fields(tokens, 0, top=True)
    if rest != len(tokens):
        raise BadInput(f"config.pbtxt cannot be read at {' '.join(tokens[rest : rest + 5])!r}")
    return fields


def _fields(tokens: list[str], at: int, *, top: bool = False) -> tuple[dict[str, list], int]:
    fields: dict[str, list] = {}
    while at < len(tokens) and tokens[at] != "}":
        name, at = tokens[at], at + 1
        values, at = _values(tokens, at)
        fields.setdefault(name, []).extend(values)
    if not top and at >= len(tokens):
        raise BadInput("config.pbtxt ends within a block; a } is missing")
    return fields, at


def _values(tokens: list[str], at: int) -> tuple[list, int]:
    """What stands behind a field's name: a value, a message, or a list of either."""
    if at < len(tokens) and tokens[at] == ":":
        at += 1
    if at >= len(tokens) or tokens[at] in "}],":
        raise BadInput("config.pbtxt has a name without a value")
    if tokens[at] == "{":
        message, at = _fields(tokens, at + 1)
        return [message], at + 1
    if tokens[at] != "[":
        return [tokens[at].strip('"')], at + 1
    listed, at = [], at + 1
    while at < len(tokens) and tokens[at] != "]":
        if tokens[at] == ",":
            at += 1
            continue
        values, at = _values(tokens, at)
        listed += values
    if at >= len(tokens):
        raise BadInput("config.pbtxt ends within a list; a ] is missing")
    return listed, at + 1


def _validate(path: Path) -> None:
    config, name = parsed(path.read_text(encoding="utf-8")), path.parent.name
    if config.get("name", [name]) != [name]:
        raise BadInput(f"{name}/config.pbtxt calls the model {config['name'][0]!r}; the folder's name must be the same")
    versions = [each for each in path.parent.iterdir() if each.is_dir() and each.name.isdecimal()]
    if not versions:
        raise BadInput(f"{name} has no version: put the model into the folder {name}/1")
    for version in versions:
        for file in ("model.py", "model.onnx"):
            if not (version / file).is_file():
                raise BadInput(f"{name}/{version.name}/{file} is missing")
        graph = export.load(version / "model.onnx")
        for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
            for tensor, (shape, dtype) in tensors.items():
                _compare(name, kind, tensor, shape, dtype, config)


def _compare(model: str, kind: str, tensor: str, shape, dtype: str, config: dict) -> None:
    entries = {entry.get("name", [""])[0]: entry for entry in config.get(kind, [])}
    if tensor not in entries:
        raise BadInput(f"{model}: the ONNX file has the {kind} {tensor!r}, config.pbtxt has {sorted(entries)}")
    said, batched = entries[tensor], config.get("max_batch_size", ["0"]) != ["0"]
    wanted = shape[1:] if batched else shape
    if batched and isinstance(shape[0], int):
        raise BadInput(f"{model}: max_batch_size batches requests, and {tensor!r} has the fixed batch {shape[0]}")
    dims = [int(each) for each in said.get("dims", [])]
    fits = len(dims) == len(wanted) and all(d in (-1, w) or not isinstance(w, int) for d, w in zip(dims, wanted))
    if not fits:
        raise BadInput(
            f"{model}: {kind} {tensor!r} has dims {dims} in config.pbtxt, and {list(wanted)} in the ONNX file"
        )
    if said.get("data_type") != [TYPES.get(dtype)]:
        raise BadInput(
            f"{model}: {kind} {tensor!r} is {said.get('data_type')} in config.pbtxt, and {dtype} in the ONNX file"
        )


def _only(tensors) -> tuple:
    if len(tensors) != 1:
        raise BadInput(f"the graph has the tensors {list(tensors)}; this model.py serves one input and one output")
    (entry,) = dict(tensors).items()
    if entry[1][1] not in TYPES or isinstance(entry[1][0][0], int):
        raise BadInput(
            f"{entry[0]!r} is {entry[1][1]} {entry[1][0]}; wanted is one of {list(TYPES)} with a free first axis"
        )
    return entry


def _dims(shape) -> str:
    return ", ".join(str(each) if isinstance(each, int) else "-1" for each in shape[1:])
