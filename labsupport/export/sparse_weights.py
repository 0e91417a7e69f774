"""Weights of which a file keeps only what is not zero."""

from __future__ import annotations

from labsupport.export.node_walks import bodies, everywhere


def written_out(model):
    """The model with its sparse weights as plain ones, in place: few tools and no runtime of ours know them.

    Those of branches and of Constant nodes, too.
    """
    import onnx

    nodes = list(everywhere([*model.graph.node, *(node for function in model.functions for node in function.node)]))
    for graph in (model.graph, *(body for node in nodes for body in bodies(node))):
        graph.initializer.extend(map(_whole, graph.sparse_initializer))
        del graph.sparse_initializer[:]
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
            attribute.CopyFrom(onnx.helper.make_attribute("value", _whole(attribute.sparse_tensor)))
    return model


def _whole(sparse):
    """A sparse tensor with its zeros."""
    import numpy as np
    from onnx import numpy_helper

    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    whole = np.zeros(tuple(sparse.dims), values.dtype)
    whole[np.unravel_index(places, whole.shape) if places.ndim == 1 else tuple(places.T)] = values
    return numpy_helper.from_array(whole, sparse.values.name)
