"""`zoo generate`: text from a language model; samples of a model of images, or what it sees between two given ones."""

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

    from zoo.model import Spec, ZooModel

_TEXT_OPTIONS = ("prompt", "max_new_tokens", "temperature", "top_k")
_NUM_SAMPLES = 64
_NUM_STEPS = 9
# Of red, green and blue in the grey value of a picture (ITU-R BT.601)
_LUMINANCE = (0.299, 0.587, 0.114)
_TEMPERATURE = 0.6  # where the small shipped models write mostly real words


def add_commands(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = add_command(commands, "generate", generate, "Continue a prompt, or draw samples of images.")
    add_source(parser)
    parser.add_argument("--prompt", help="text to continue (language models)")
    parser.add_argument("--max-new-tokens", type=positive, help="length of the continuation (language models)")
    parser.add_argument("--temperature", type=duration, help="0 takes the likeliest token; default: 0.6 (text)")
    parser.add_argument("--top-k", type=positive, help="sample among the k likeliest tokens (language models)")
    parser.add_argument(
        "--interpolate",
        nargs=2,
        type=Path,
        metavar=("START", "END"),
        help="two PNG files of the model's size: draw what lies between them (models of images with an encoder)",
    )
    parser.add_argument("--seed", type=natural, default=0, help="same seed, same result (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write (default: standard output for text, samples.png or interpolation.png for images)",
    )


def generate(options: argparse.Namespace) -> None:
    """Runs `zoo generate`."""
    from zoo.files import check_writable

    check_source(options.source, options.preset)
    if options.output is not None:
        check_writable(options.output.parent)
    for path in options.interpolate or ():
        if not path.is_file():
            raise FileNotFoundError(f"There is no such file for `--interpolate`. Received: {str(path)!r}")
    with stages() as say:
        say("Loading the model")
        model = load_model(options.source, options.preset)
        say("Generating")
        if options.interpolate is not None:
            text = _interpolation(model, options)
        elif hasattr(model, "generate"):
            text = _text(model, options)
        elif _draws_images(model):
            text = _images(model, options)
        else:
            raise ValueError(f"This model generates neither text nor images. Received: {options.source!r}")
    sys.stdout.write(text)


# === Text ===


def _text(model: Any, options: argparse.Namespace) -> str:
    if options.prompt is None:
        raise ValueError('A language model continues a text: pass --prompt "...". Received: no prompt')
    chosen = {name: getattr(options, name) for name in _TEXT_OPTIONS if getattr(options, name) is not None}
    text = _written(model, chosen, options.seed) + "\n"
    if options.output is None:
        return text
    from zoo.files import atomic_file

    with atomic_file(options.output) as file:
        file.write_text(text, encoding="utf-8")
    return f"{options.output}\n"


def _written(model: Any, chosen: dict[str, Any], seed: int) -> str:
    """Returns a prompt and its continuation, or what an encoder-decoder makes of a source."""
    from zoo.sequence.encoder_decoder import EncoderDecoder

    if not isinstance(model, EncoderDecoder):
        return chosen["prompt"] + model.generate(**{"temperature": _TEMPERATURE, **chosen}, seed=seed)
    source = chosen.pop("prompt")
    if unfit := sorted(set(chosen) & {"temperature", "top_k"}):
        raise ValueError(
            f"An encoder-decoder takes the likeliest token, without options of sampling. Received: {unfit}"
        )
    return model.generate(source, **chosen)


# === Images ===


def _draws_images(model: Any) -> bool:
    if not hasattr(model, "sample") or not hasattr(model, "signatures"):
        return False
    return any("image" in {**chosen.inputs, **chosen.outputs} for chosen in model.signatures().values())


def _images(model: ZooModel, options: argparse.Namespace) -> str:
    _check_image_options(options)
    images = _as_images(model.sample(_NUM_SAMPLES, seed=options.seed))
    return _write(images, math.isqrt(_NUM_SAMPLES), model, options.output or Path("samples.png"))


def _check_image_options(options: argparse.Namespace) -> None:
    unfit = [name for name in _TEXT_OPTIONS if getattr(options, name) is not None]
    if unfit:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in unfit)
        raise ValueError(f"Only language models take these options. Received: {words}")
    require_extra("matplotlib", "plot", "Drawing images")


def _write(images: np.ndarray, columns: int, model: ZooModel, output: Path) -> str:
    from zoo.files import atomic_file

    with atomic_file(output) as file:
        _draw(images, columns, _value_range(model, images), file)
    return f"{output}\n"


def _as_images(values: np.ndarray) -> np.ndarray:
    """Returns `(count, height, width, channels)`."""
    return values.reshape(-1, *_image_size(values.shape[1:]))


def _image_size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns height, width and channels of an image; a flat one must be square, of one channel or three."""
    if len(shape) > 1:
        return shape[0], shape[1], math.prod(shape[2:])
    (features,) = shape
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if side * side * channels == features:
            return side, side, channels
    raise ValueError(f"Flat images must be square to be drawn. Received: {features} features")


def _value_range(model: ZooModel, images: np.ndarray) -> tuple[float, float]:
    """Returns black and white: what a signature says of its input `image`, else what the samples span."""
    for signature in model.signatures().values():
        spec = signature.inputs.get("image")
        if spec is not None and spec.minimum is not None and spec.maximum is not None:
            return spec.minimum, spec.maximum
    return float(images.min()), float(images.max())


def _draw(images: np.ndarray, columns: int, value_range: tuple[float, float], path: Path) -> None:
    import numpy as np
    from matplotlib import image

    height, width, channels = images.shape[1:]
    rows = images.reshape(-1, columns, height, width, channels)
    # A white line around every image
    framed = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value_range[1])
    grid = framed.transpose(0, 2, 1, 3, 4).reshape(-1, columns * (width + 2), channels)
    low, high = value_range
    scaled = np.clip((grid - low) / (high - low), 0.0, 1.0)
    pixels = np.repeat(np.repeat(np.broadcast_to(scaled, (*scaled.shape[:2], 3)), 4, axis=0), 4, axis=1)
    image.imsave(path, pixels, format="png")


# === Between two given images ===


def _interpolation(model: Any, options: argparse.Namespace) -> str:
    spec = _encoded_image(model)
    if spec is None:
        raise ValueError(
            "Only a model with an encoder of images interpolates between given ones; a GAN, for one, has none. "
            f"Received: {options.source!r}"
        )
    _check_image_options(options)
    size = _image_size(spec.shape[1:])
    low, high = spec.minimum, spec.maximum
    start, end = (low + (high - low) * _read(path, size).reshape(1, *spec.shape[1:]) for path in options.interpolate)
    path = model.interpolate(start, end, _NUM_STEPS)[0]
    return _write(_as_images(path), _NUM_STEPS, model, options.output or Path("interpolation.png"))


def _encoded_image(model: Any) -> Spec | None:
    """Returns the input `image` of the signature `encode` of a model that interpolates; `None` where there is none."""
    signatures = model.signatures() if hasattr(model, "signatures") else {}
    if not hasattr(model, "interpolate") or "encode" not in signatures:
        return None
    return signatures["encode"].inputs.get("image")


def _read(path: Path, size: tuple[int, int, int]) -> np.ndarray:
    """Returns the picture of a PNG file.

    Args:
        path: path.
        size: tuple of int. Height, width and channels, 1 or 3, of the result.

    Returns:
        float32 array of that shape, in [0, 1]; a picture in colours gives its luminance where grey is wanted.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no PNG, a picture of another size, or one that is transparent.
    """
    import numpy as np
    from matplotlib import image

    try:
        pixels = image.imread(path, format="png")
    except (SyntaxError, ValueError) as error:  # what PIL and matplotlib raise on another or a damaged file
        raise ValueError(f"`--interpolate` takes PNG files. Received: {str(path)!r}, {error}") from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 1:
        raise ValueError(f"`--interpolate` takes pictures without transparent pixels. Received: {str(path)!r}")
    if pixels.shape[:2] != size[:2]:
        raise ValueError(
            f"`--interpolate` takes pictures of {size[0]} x {size[1]} pixels, the size of this model. "
            f"Received: {pixels.shape[0]} x {pixels.shape[1]} in {str(path)!r}"
        )
    colours = np.broadcast_to(pixels[..., :3], (*size[:2], 3))
    if size[2] == 3:
        return colours.astype(np.float32)
    return (colours @ np.array(_LUMINANCE)).clip(0, 1).astype(np.float32)[..., None]
