"""`zoo generate`: text from a language model, a grid of samples from a model of images."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.terminal import (
    add_command,
    add_source,
    check_source,
    duration,
    load_model,
    natural,
    positive,
    require_extra,
    stages,
)

if TYPE_CHECKING:
    import numpy as np

    from zoo.model import ZooModel

_TEXT_OPTIONS = ("prompt", "max_new_tokens", "temperature", "top_k")
_NUM_SAMPLES = 64
_TEMPERATURE = 0.6  # where the small shipped models write mostly real words


def add_commands(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = add_command(commands, "generate", generate, "Continue a prompt, or draw samples of images.")
    add_source(parser)
    parser.add_argument("--prompt", help="text to continue (language models)")
    parser.add_argument("--max-new-tokens", type=positive, help="length of the continuation (language models)")
    parser.add_argument("--temperature", type=duration, help="0 takes the likeliest token; default: 0.6 (text)")
    parser.add_argument("--top-k", type=positive, help="sample among the k likeliest tokens (language models)")
    parser.add_argument("--seed", type=natural, default=0, help="same seed, same result (default: 0)")
    parser.add_argument(
        "--output", type=Path, help="file to write (default: standard output for text, samples.png for images)"
    )


def generate(options: argparse.Namespace) -> None:
    """Runs `zoo generate`."""
    from zoo.files import check_writable

    check_source(options.source, options.preset)
    if options.output is not None:
        check_writable(options.output.parent)
    with stages() as say:
        say("Loading the model")
        model = load_model(options.source, options.preset)
        say("Generating")
        if hasattr(model, "generate"):
            text = _text(model, options)
        elif hasattr(model, "signatures") and "sample" in model.signatures():
            text = _images(model, options)
        else:
            raise ValueError(f"This model generates neither text nor images. Received: {options.source!r}")
    sys.stdout.write(text)


# === Text ===


def _text(model: Any, options: argparse.Namespace) -> str:
    if options.prompt is None:
        raise ValueError('A language model continues a text: pass --prompt "...". Received: no prompt')
    chosen = {name: getattr(options, name) for name in _TEXT_OPTIONS if getattr(options, name) is not None}
    text = options.prompt + model.generate(**{"temperature": _TEMPERATURE, **chosen}, seed=options.seed) + "\n"
    if options.output is None:
        return text
    from zoo.files import atomic_file

    with atomic_file(options.output) as file:
        file.write_text(text, encoding="utf-8")
    return f"{options.output}\n"


# === Images ===


def _images(model: ZooModel, options: argparse.Namespace) -> str:
    unfit = [name for name in _TEXT_OPTIONS if getattr(options, name) is not None]
    if unfit:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in unfit)
        raise ValueError(f"Only language models take these options. Received: {words}")
    require_extra("matplotlib", "plot", "Drawing images")
    from zoo.files import atomic_file

    output = options.output or Path("samples.png")
    noise = model.dummy_inputs("sample", batch_size=_NUM_SAMPLES, seed=options.seed)
    images = _as_images(model.run("sample", **noise)["image"])
    with atomic_file(output) as file:
        _draw(images, _value_range(model, images), file)
    return f"{output}\n"


def _as_images(values: np.ndarray) -> np.ndarray:
    """Returns `(count, height, width, channels)`; flat images must be square, of one channel or three."""
    if values.ndim > 2:
        return values.reshape(*values.shape[:3], -1)
    features = values.shape[1]
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if side * side * channels == features:
            return values.reshape(-1, side, side, channels)
    raise ValueError(f"Flat images must be square to be drawn. Received: {features} features")


def _value_range(model: ZooModel, images: np.ndarray) -> tuple[float, float]:
    """Returns black and white: what a signature says of its input `image`, else what the samples span."""
    for signature in model.signatures().values():
        spec = signature.inputs.get("image")
        if spec is not None and spec.minimum is not None and spec.maximum is not None:
            return spec.minimum, spec.maximum
    return float(images.min()), float(images.max())


def _draw(images: np.ndarray, value_range: tuple[float, float], path: Path) -> None:
    import numpy as np
    from matplotlib import image

    count, height, width, channels = images.shape
    columns = math.isqrt(count)
    rows = images[: columns * columns].reshape(columns, columns, height, width, channels)
    # A white line around every image
    framed = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value_range[1])
    grid = framed.transpose(0, 2, 1, 3, 4).reshape(columns * (height + 2), columns * (width + 2), channels)
    low, high = value_range
    scaled = np.clip((grid - low) / (high - low), 0.0, 1.0)
    pixels = np.repeat(np.repeat(np.broadcast_to(scaled, (*scaled.shape[:2], 3)), 4, axis=0), 4, axis=1)
    image.imsave(path, pixels, format="png")
