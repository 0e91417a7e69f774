"""Weights of which a file keeps only what is not zero."""

from __future__ import annotations


def written_out(model):
    """The model with its sparse weights as plain ones, in place: few tools and no runtime of ours know them."""
    import numpy as np
    from onnx import numpy_helper

    for sparse in model.graph.sparse_initializer:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        whole = np.zeros(tuple(sparse.dims), values.dtype)
        whole[np.unravel_index(places, whole.shape) if places.ndim == 1 else tuple(places.T)] = values
        model.graph.initializer.append(numpy_helper.from_array(whole, sparse.values.name))
    del model.graph.sparse_initializer[:]
    return model
