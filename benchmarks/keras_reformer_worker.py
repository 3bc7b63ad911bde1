"""The Keras side of `reformer_speed.py`: reads commands from standard input, answers with CPU seconds."""

import json
import os
import sys
import time

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import keras
import numpy as np
import tensorflow as tf

from zoo.sequence.reformer import Reformer


def main():
    config = json.loads(sys.stdin.readline())
    ids = tf.constant(np.random.default_rng(0).integers(0, config["vocabulary_size"], (1, config.pop("length"))))
    model = Reformer(**config).build_from_signature()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def forward(tokens):
        return loss_of(tokens, model.read(tokens, training=False))

    @tf.function
    def both(tokens):
        with tf.GradientTape() as tape:
            loss = loss_of(tokens, model.read(tokens, training=True))
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_variables)]
        return loss, [tf.reduce_sum(gradient) for gradient in gradients]

    print(json.dumps({"parameters": model.count_params()}), flush=True)
    for line in sys.stdin:
        kind, count = json.loads(line)
        function = forward if kind == "forward" else both
        start = time.process_time()
        for _ in range(count):
            tf.nest.map_structure(lambda tensor: tensor.numpy(), function(ids))
        print(json.dumps((time.process_time() - start) / count), flush=True)


if __name__ == "__main__":
    main()
