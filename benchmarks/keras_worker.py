"""The Keras side of `language_models.py`: reads commands from standard input, answers with CPU seconds."""

import json
import os
import sys
import time

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import numpy as np

import zoo
from zoo.experiments.language_models import compiler
from zoo.training.streams import token_streams


def main():
    config = json.loads(sys.stdin.readline())
    method, batch_size = config.pop("method"), config.pop("batch_size")
    model = zoo.get(method, weights=None)
    compiler(1e-3, 10, 0.25, 1e-4, clip_groups=["compression_"])(model, 10_000)
    ids = np.random.default_rng(0).integers(0, config["vocabulary_size"], batch_size * config["window_length"] * 50)
    data = token_streams(ids, batch_size, config["window_length"], repeat=True)
    print(json.dumps({"parameters": model.count_params()}), flush=True)
    for line in sys.stdin:
        kind, count = json.loads(line)
        start = time.process_time()
        if kind == "train":
            model.fit(data, steps_per_epoch=count, epochs=1, verbose=0, shuffle=False)
        else:
            model.generate(ids[: config["window_length"]], max_new_tokens=count)
        print(json.dumps((time.process_time() - start) / count), flush=True)


if __name__ == "__main__":
    main()
