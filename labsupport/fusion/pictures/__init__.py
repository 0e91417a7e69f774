"""Plans as pictures: ``before_after`` (the graph beside its kernels) and ``canvas`` (boxes, words and edges)."""
