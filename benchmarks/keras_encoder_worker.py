"""The Keras sides of `text_encoders.py`, ours and KerasHub's: reads commands from standard input, answers with CPU seconds.

One process is one side.
"""

import json
import os
import sys
import time

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
# PyTorch calls oneDNN on all processors, TensorFlow of its own accord only on some
os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": "1"}

import keras
import numpy as np
import tensorflow as tf

SIZES = ("vocabulary_size", "num_layers", "hidden_dim", "num_heads", "intermediate_dim", "dropout")


def our_backbone(config: dict) -> keras.layers.Layer:
    from zoo.language.albert import AlbertBackbone
    from zoo.language.backbone import TextBackbone

    sizes = {**{name: config[name] for name in SIZES}, "attention_dropout": config["dropout"]}
    if config["method"] == "bert":
        backbone = TextBackbone(**sizes)
    else:
        backbone = AlbertBackbone(**sizes, embedding_dim=config["embedding_dim"], activation="gelu_tanh")
    backbone.build()
    return backbone


def their_backbone(config: dict) -> keras.layers.Layer:
    import keras_hub

    sizes = {name: config[name] for name in SIZES}
    if config["method"] == "bert":
        return keras_hub.models.BertBackbone(**sizes)
    return keras_hub.models.AlbertBackbone(**sizes, embedding_dim=config["embedding_dim"], num_segments=2)


def main():
    config = json.loads(sys.stdin.readline())
    backbone = our_backbone(config) if config["library"] == "zoo" else their_backbone(config)
    classifier = keras.layers.Dense(config["num_classes"])
    classifier.build((None, config["hidden_dim"]))
    rng = np.random.default_rng(0)
    shape = (config["batch"], config["length"])
    inputs = {
        "token_ids": tf.constant(rng.integers(1, config["vocabulary_size"], shape, "int32")),
        "segment_ids": tf.zeros(shape, "int32"),
        "padding_mask": tf.ones(shape, "int32"),
    }
    labels = tf.constant(rng.integers(0, config["num_classes"], shape[0]))
    variables = [*backbone.trainable_variables, *classifier.trainable_variables]

    @tf.function
    def infer(inputs):
        return backbone(inputs, training=False)["pooled_output"]

    @tf.function
    def train(inputs):
        with tf.GradientTape() as tape:
            logits = classifier(backbone(inputs, training=True)["pooled_output"])
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        return loss, [tf.reduce_sum(tf.convert_to_tensor(gradient)) for gradient in gradients]

    print(json.dumps({"parameters": backbone.count_params()}), flush=True)
    for line in sys.stdin:
        kind, count = json.loads(line)
        function = infer if kind == "inference" else train
        start = time.process_time()
        for _ in range(count):
            tf.nest.map_structure(lambda tensor: tensor.numpy(), function(inputs))
        print(json.dumps((time.process_time() - start) / count), flush=True)


if __name__ == "__main__":
    main()
