"""Train a small digit network in MXNet 1.9.1 and export it with MXNet's own exporter, about a minute on one CPU core.

MXNet was retired in 2023, and its last release needs an old Python, so this script runs in an environment of its own and
imports nothing of the workbook; README.md beside it has the commands. Run it from the folder that it stands in.
"""

import numpy as np
import mxnet as mx
from mxnet import autograd, gluon
from mxnet.gluon import nn

SEED, EPOCHS, BATCH = 0, 20, 64


def digits():
    """(images float32 (N, 1, 28, 28) from -1 to 1, labels float32 (N,)) of training, and of the last 500 of a shuffle."""
    with np.load("../mnist_5k.npz") as stored:
        images = (stored["images"][:, None].astype(np.float32) / 255 - 0.5) / 0.5
        labels = stored["labels"].astype(np.float32)
    order = np.random.RandomState(SEED).permutation(len(images))
    return (images[order[:-500]], labels[order[:-500]]), (images[order[-500:]], labels[order[-500:]])


def network():
    """Convolution, batch norm, pooling, convolution, pooling, dense: 5,282 numbers."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3, use_bias=False), nn.BatchNorm(), nn.Activation("relu"), nn.MaxPool2D(2))
    net.add(nn.Conv2D(16, 3), nn.Activation("relu"), nn.MaxPool2D(2), nn.Flatten(), nn.Dense(10))
    net.initialize(mx.init.Xavier())
    net.hybridize()
    return net


def train(net, images, labels):
    """Adam, its step divided by ten for the last quarter."""
    loss, rng = gluon.loss.SoftmaxCrossEntropyLoss(), np.random.RandomState(SEED)
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 2e-3})
    for epoch in range(EPOCHS):
        if epoch == EPOCHS * 3 // 4:
            trainer.set_learning_rate(2e-4)
        order = rng.permutation(len(images))
        for start in range(0, len(images), BATCH):
            chosen = order[start : start + BATCH]
            with autograd.record():
                error = loss(net(mx.nd.array(images[chosen])), mx.nd.array(labels[chosen]))
            error.backward()
            trainer.step(len(chosen))


def main():
    mx.random.seed(SEED)
    np.random.seed(SEED)
    (images, labels), (held_out, answers) = digits()
    net = network()
    train(net, images, labels)
    scores = net(mx.nd.array(held_out)).asnumpy()
    print("right of 500 held-out digits:", int((scores.argmax(1) == answers).sum()))
    net.export("digits", epoch=0)  # MXNet's own format: a graph as JSON, and the weights
    mx.onnx.export_model("digits-symbol.json", "digits-0000.params", [(1, 1, 28, 28)], np.float32, "digits.onnx",
                         dynamic=True, dynamic_input_shapes=[("batch", 1, 28, 28)])  # fmt: skip
    pixels = np.round((held_out[:32, 0] + 1) * 127.5).astype(np.uint8)
    np.savez_compressed("reference.npz", images=pixels, logits=scores[:32])  # what MXNet itself answers


if __name__ == "__main__":
    main()
