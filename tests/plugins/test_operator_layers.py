"""The operator from TensorRT's own layers, and how an implementation is examined."""

from __future__ import annotations

import pytest
import torch
from operators_stand_ins import needs_rtx

from labsupport import environment, export, plugins
from labsupport.build import network
from labsupport.errors import BadInput, BuildError
from labsupport.plugins import examination

# --- layers ---------------------------------------------------------------------------------------------------------


def layers(trt, network, inputs, attributes):
    x, gate, weight = inputs
    operations = trt.ElementWiseOperation
    product = network.add_elementwise(x, gate, operations.PROD).get_output(0)
    return network.add_elementwise(product, weight, operations.PROD).get_output(0)


def parsed(define):
    trt = environment.tensorrt()
    builder = trt.Builder(network.logger())
    made = builder.create_network(network.flags(trt))
    define(trt, made)
    return made, builder


@needs_rtx
def test_layers_take_the_place_of_the_node(graph):
    made, _ = parsed(plugins.with_layers(graph, "GatedRmsNorm", layers))
    placeholder = next(made.get_layer(i) for i in range(made.num_layers) if made.get_layer(i).type.name == "ACTIVATION")
    read = {
        made.get_layer(i).get_input(j).name
        for i in range(made.num_layers)
        for j in range(made.get_layer(i).num_inputs)
        if made.get_layer(i).get_input(j) is not None
    }
    assert placeholder.get_output(0).name not in read and [
        made.get_output(i).name for i in range(made.num_outputs)
    ] == ["mixed"]


@needs_rtx
def test_a_node_that_writes_the_output_is_replaced_too():
    made, _ = parsed(plugins.with_layers(plugins.operator_graph(4), "GatedRmsNorm", layers))
    assert [made.get_output(i).name for i in range(made.num_outputs)] == ["y"]
    last = next(made.get_layer(i) for i in range(made.num_layers) if made.get_layer(i).get_output(0).name == "y")
    assert last.type.name == "ELEMENTWISE"


@needs_rtx
def test_a_maker_that_returns_no_tensor_is_told(graph):
    with pytest.raises(BadInput, match=r"make\(\) gave a NoneType"):
        parsed(plugins.with_layers(graph, "GatedRmsNorm", lambda *_: None))


@needs_rtx
def test_a_second_unknown_operator_is_named(graph):
    model = graph.model()
    model.graph.node[0].op_type = "Jemm"
    model.graph.node[0].domain = "workbook"
    other = export.save(model, export.scratch_folder() / "two.onnx")
    with pytest.raises(BuildError, match="another operator is unknown, too"):
        parsed(plugins.with_layers(other, "GatedRmsNorm", layers))


# --- examining and timing -------------------------------------------------------------------------------------------


def whole_rounds(x, gate, weight):
    """Forgets what is left of a row beyond a multiple of 32."""
    seen, y = x.shape[-1] // 32 * 32, torch.zeros_like(x)
    v = (x * torch.nn.functional.silu(gate))[:, :seen]
    y[:, :seen] = v * torch.rsqrt((v**2).sum(-1, keepdim=True) / x.shape[-1] + plugins.EPSILON) * weight[:seen]
    return y


def test_a_fault_at_odd_sizes_passes_the_usual_ones_and_is_found():
    assert plugins.examine(whole_rounds, columns=(32, 64, 1024)).passed
    found = plugins.examine(whole_rounds)
    assert not found.passed and set(found.wrong_columns) == {c for c in examination.COLUMNS if c % 32}
    assert "wrong" in repr(found) and "WRONG" in repr(found.wrong[0])


def test_a_kernel_that_takes_addresses_is_wrong_on_views():
    def by_address(x, gate, weight):
        return plugins.chain(*(torch.as_strided(t, t.shape, (t.shape[1], 1)) for t in (x, gate)), weight)

    right = {layout: plugins.examine(by_address, columns=(64,), layouts=[layout]).passed for layout in plugins.LAYOUTS}
    assert right == {"packed": True, "sliced": False, "transposed": False}


def test_a_refusal_is_not_wrong_and_not_right():
    def refusing(x, gate, weight):
        if not x.is_contiguous():
            raise BadInput("pass x.contiguous()")
        return plugins.chain(x, gate, weight)

    seen = plugins.examine(refusing, columns=(8,), layouts=("packed", "sliced"))
    assert seen.passed and "2 refused" in repr(seen) and "pass x.contiguous" in repr(seen.cases[-1])

    def never(x, gate, weight):
        raise BadInput("no")

    assert not plugins.examine(never, columns=(8,)).passed


@pytest.mark.parametrize(
    "broken",
    [
        lambda x, gate, weight: plugins.chain(x, gate, weight)[:1],
        lambda x, gate, weight: x * float("nan"),
        lambda x, gate, weight: None,
    ],
    ids=["shape", "NaN", "nothing"],
)
def test_another_shape_and_nan_are_wrong(broken):
    assert len(plugins.examine(broken, columns=(8,), dtypes=["float32"]).wrong) == 1


def test_sizes_may_come_from_a_generator():
    seen = plugins.examine(
        plugins.chain, rows=iter([1, 2]), columns=iter([4, 5]), dtypes=iter(["float32"]), layouts=iter(["packed"])
    )
    assert len(seen.cases) == 4 and seen.passed


def test_an_unknown_layout_is_refused():
    with pytest.raises(BadInput, match=r"layouts=\['tiled'\] are unknown"):
        plugins.examine(plugins.chain, layouts=["tiled"])
