"""Contrastive Predictive Coding: representations of sequences, by telling their future from other samples.

van den Oord, Li, Vinyals 2018 (https://arxiv.org/abs/1807.03748), section 2. Every frame x_t of a sequence is encoded,
z_t = g_enc(x_t), and what was read so far is summed up, c_t = g_ar(z_1 ... z_t). For each of P steps ahead a matrix W_k
scores latents, f_k(x_{t+k}, c_t) = exp(z_{t+k}' W_k c_t), and the future one has to be found among N candidates:

    L = -1/P sum_k E[ log f_k(x_{t+k}, c_t) / sum_j f_k(x_j, c_t) ]

over all t with t + P <= T. `log N - L_k` is InfoNCE, a lower bound on I(x_{t+k}; c_t). Gradients go through contexts and
through latents, wrong ones too; nothing is normalised, neither latents nor, by their batch, activations, whose statistics
would tell the right candidate.

Differs from the paper: encoders of text and of crops of images are small, and images are read from top to bottom by a GRU
whose input is a latent with its two neighbours in the row, where the paper has a PixelCNN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from zoo.arguments import require
from zoo.datasets import load_text
from zoo.information import bounds
from zoo.information.image_pairs import batches, labelled_images
from zoo.layers.chain import apply_chain, build_chain
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel

NEGATIVES = ("batch_time", "batch", "same_sequence", "excl_current")
POSITIONS = ("all", "random")
# Sequences of a batch of held-out estimates: 180 and 360 images, of validation and test, are 3 and 6 batches.
EVALUATION_SEQUENCES = 60


# === Encoders ===


class FrameEncoder(layers.Layer):
    """Base class: cuts a sequence into frames, and encodes each of them alone.

    Args:
        sequence_shape: tuple of ints. Shape of a sequence, without the batch.
        dims: tuple of ints. Sizes of the layers, the latent's last.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    # Axes of a sequence, and what they are.
    rank: int
    sequence_axes: str
    # Latents of a frame, side by side; None for a single one without an axis of its own.
    num_columns: int | None = None

    def __init__(self, sequence_shape: tuple[int, ...], dims: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        expected = f"{self.rank} sizes of at least 1: {self.sequence_axes}"
        valid = len(sequence_shape) == self.rank and all(size >= 1 for size in sequence_shape)
        require(valid, "sequence_shape", expected, sequence_shape)
        self.sequence_shape = sequence_shape
        self.dims = dims
        self.latent_dim = dims[-1]

    @property
    def num_frames(self) -> int:
        """Length of a sequence, in frames."""
        return self.sequence_shape[0]

    @property
    def sequence_spec(self) -> Spec:
        """What the encoder takes."""
        raise NotImplementedError(f"{type(self).__name__} defines no sequences.")

    @property
    def frame_spec(self) -> Spec:
        """What `encode_frame` takes."""
        raise NotImplementedError(f"{type(self).__name__} defines no frames.")

    def frame(self, sequence: np.ndarray, index: int) -> np.ndarray:
        """Returns what of sequences `(batch, ...)` belongs to a frame."""
        return sequence[:, index]

    def encode_frame(self, frame: Any) -> Any:
        """Returns the latents of single frames `(batch, ...)`."""
        return self(frame)


class DenseEncoder(FrameEncoder):
    """Of vectors `(time, features)`: dense layers, rectified but for the last."""

    rank = 2
    sequence_axes = "time and features"

    def build(self, shape: Any) -> None:
        """Creates the layers."""
        self.chain = [
            layers.Dense(size, activation="relu" if index < len(self.dims) - 1 else None, dtype=self.dtype_policy)
            for index, size in enumerate(self.dims)
        ]
        build_chain(self.chain, (None, *self.sequence_shape))

    def call(self, sequence: Any) -> Any:
        """Returns latents `(batch, time, latent_dim)`; any axes may come before the last."""
        return apply_chain(self.chain, sequence)

    @property
    def sequence_spec(self) -> Spec:
        """Vectors of all times."""
        return Spec(
            ("batch", *self.sequence_shape), "float32", "Vectors in time; of images the rows, pixels in [0, 1]."
        )

    @property
    def frame_spec(self) -> Spec:
        """A vector."""
        return Spec(("batch", self.sequence_shape[1]), "float32", "Vector of the next time.")


class AudioEncoder(FrameEncoder):
    """Of samples of sound: five convolutions, rectified, which make one latent of every 160 samples.

    Padding gives as many frames as there are strides of 160. Reference: section 3.1; the padding is that of the public
    reimplementation by jefflai108, as the paper does not say how 20,480 samples become 128 frames.
    """

    rank = 1
    sequence_axes = "samples"
    # Kernel, stride and padding on both sides of every convolution.
    CONVOLUTIONS = ((10, 5, 3), (8, 4, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1))

    def __init__(self, sequence_shape: tuple[int, ...], dims: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(sequence_shape, dims, **kwargs)
        require(len(dims) == len(self.CONVOLUTIONS), "encoder_dims", "the filters of 5 convolutions", dims)
        # Samples from one frame to the next, samples that a frame sees, and how many of them are before its own first.
        self.hop, self.window, self.lead = 1, 1, 0
        for kernel, stride, padding in self.CONVOLUTIONS:
            self.window += (kernel - 1) * self.hop
            self.lead += padding * self.hop
            self.hop *= stride

    def build(self, shape: Any) -> None:
        """Creates the convolutions."""
        self.chain = [
            layers.Conv1D(filters, kernel, stride, activation="relu", dtype=self.dtype_policy)
            for filters, (kernel, stride, _) in zip(self.dims, self.CONVOLUTIONS, strict=True)
        ]
        build_chain(self.chain, (None, self.window, 1))

    def call(self, sequence: Any) -> Any:
        """Returns latents `(batch, frames, latent_dim)`."""
        hidden = ops.expand_dims(sequence, -1)
        for layer, (_, _, padding) in zip(self.chain, self.CONVOLUTIONS, strict=True):
            hidden = layer(ops.pad(hidden, ((0, 0), (padding, padding), (0, 0))))
        return hidden

    def encode_frame(self, frame: Any) -> Any:
        """Returns latents of what single frames see. At the ends of a sound `call` differs: it pads every layer."""
        return ops.squeeze(apply_chain(self.chain, ops.expand_dims(ops.cast(frame, self.compute_dtype), -1)), 1)

    @property
    def num_frames(self) -> int:
        """Length of a sound, in frames."""
        length = self.sequence_shape[0]
        for kernel, stride, padding in self.CONVOLUTIONS:
            length = (length + 2 * padding - kernel) // stride + 1
        return length

    @property
    def sequence_spec(self) -> Spec:
        """A sound."""
        return Spec(("batch", *self.sequence_shape), "float32", "Samples of sound, 16 kHz.")

    @property
    def frame_spec(self) -> Spec:
        """A part of it."""
        description = f"The {self.window} samples that a frame sees, {self.lead} of them before its own first."
        return Spec(("batch", self.window), "float32", description)

    def frame(self, sequence: np.ndarray, index: int) -> np.ndarray:
        """Returns the samples that a frame sees; zeros where a sound has none."""
        padded = np.pad(sequence, ((0, 0), (self.lead, self.window)))
        return padded[:, self.hop * index : self.hop * index + self.window]


class PatchEncoder(FrameEncoder):
    """Of images: a 7 x 7 grid of crops that overlap by half, each encoded by residual blocks and averaged over its pixels.

    A frame is a row of the grid. Blocks are those of version 2, rectified before convolutions, without normalisation; all
    but the first halve the image.

    Reference: section 3.2, where crops of 64 x 64 pixels go through three stages of a ResNet-v2-101.
    """

    rank = 3
    sequence_axes = "height, width and channels"
    num_columns = 7

    def __init__(self, sequence_shape: tuple[int, ...], dims: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(sequence_shape, dims, **kwargs)
        divisible = all(size % (self.num_columns + 1) == 0 for size in sequence_shape[:2])
        require(divisible, "sequence_shape", "of a height and a width divisible by 8", sequence_shape)

    @property
    def num_frames(self) -> int:
        """Rows of the grid."""
        return self.num_columns

    def build(self, shape: Any) -> None:
        """Creates the blocks."""

        def convolution(filters: int, kernel: int, strides: int = 1) -> layers.Conv2D:
            return layers.Conv2D(filters, kernel, strides, padding="same", dtype=self.dtype_policy)

        height, width, channels = (size // 4 for size in (*self.sequence_shape[:2], 4 * self.sequence_shape[2]))
        self.stem = convolution(self.dims[0], 3)
        shape = build_chain([self.stem], (None, height, width, channels))
        self.blocks = []
        for index, filters in enumerate(self.dims):
            strides = 1 if index == 0 else 2
            residual = [convolution(filters, 3, strides), convolution(filters, 3)]
            shortcut = [] if index == 0 else [convolution(filters, 1, strides)]
            self.blocks.append([residual, shortcut])
            build_chain(shortcut, shape)
            shape = build_chain(residual, shape)

    def call(self, sequence: Any) -> Any:
        """Returns latents `(batch, rows, 7, latent_dim)` of images of any height."""
        height, width, channels = self._crop_shape
        size = height // 2
        rows = sequence.shape[1] // size - 1
        strips = [sequence[:, i * size : i * size + height] for i in range(rows)]
        size = width // 2
        crops = [
            ops.stack([s[:, :, i * size : i * size + width] for i in range(self.num_columns)], axis=1) for s in strips
        ]
        hidden = ops.reshape(ops.stack(crops, axis=1), (-1, height, width, channels))
        return ops.reshape(self._encode_crops(hidden), (-1, rows, self.num_columns, self.latent_dim))

    @property
    def _crop_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.sequence_shape
        return height // 4, width // 4, channels

    def _encode_crops(self, crops: Any) -> Any:
        hidden = self.stem(crops)
        for (first, second), shortcut in self.blocks:
            rectified = ops.relu(hidden)
            hidden = apply_chain(shortcut, rectified if shortcut else hidden) + second(ops.relu(first(rectified)))
        return ops.mean(ops.relu(hidden), axis=(1, 2))

    def encode_frame(self, frame: Any) -> Any:
        """Returns the latents `(batch, 7, latent_dim)` of strips of images, as high as a crop."""
        return ops.squeeze(self(frame), 1)

    @property
    def sequence_spec(self) -> Spec:
        """An image."""
        return Spec(("batch", *self.sequence_shape), "float32", "Images, pixels in [0, 1].", 0, 1)

    @property
    def frame_spec(self) -> Spec:
        """A strip of it."""
        height, _, channels = self._crop_shape
        shape = ("batch", height, self.sequence_shape[1], channels)
        return Spec(shape, "float32", "The next row of crops: a strip of the image, half of it new.", 0, 1)

    def frame(self, sequence: np.ndarray, index: int) -> np.ndarray:
        """Returns strips of images."""
        height, _, _ = self._crop_shape
        return sequence[:, index * height // 2 : index * height // 2 + height]


class TextEncoder(FrameEncoder):
    """Of pieces of text `(pieces, bytes)`: embeddings of bytes, a convolution of 5 of them, rectified, and their mean.

    Reference: section 3.3, where a piece is a sentence of words.
    """

    rank = 2
    sequence_axes = "pieces and bytes of each"
    NUM_BYTES, KERNEL = 256, 5

    def __init__(self, sequence_shape: tuple[int, ...], dims: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(sequence_shape, dims, **kwargs)
        require(len(dims) == 2, "encoder_dims", "the sizes of embedding and latent", dims)

    def build(self, shape: Any) -> None:
        """Creates embedding and convolution."""
        self.embedding = layers.Embedding(self.NUM_BYTES, self.dims[0], dtype=self.dtype_policy)
        self.convolution = layers.Conv1D(
            self.latent_dim, self.KERNEL, padding="same", activation="relu", dtype=self.dtype_policy
        )
        build_chain([self.embedding, self.convolution], (None, self.sequence_shape[1]))

    def call(self, sequence: Any) -> Any:
        """Returns latents `(batch, pieces, latent_dim)`."""
        pieces, size = sequence.shape[1], self.sequence_shape[1]
        # Without a static number of pieces the batch has to be.
        leading = (-1, pieces) if pieces is not None else (ops.shape(sequence)[0], -1)
        return ops.reshape(self.encode_frame(ops.reshape(sequence, (-1, size))), (*leading, self.latent_dim))

    def encode_frame(self, frame: Any) -> Any:
        """Returns the latents `(batch, latent_dim)` of single pieces."""
        return ops.mean(self.convolution(self.embedding(frame)), axis=1)

    @property
    def sequence_spec(self) -> Spec:
        """Pieces of text."""
        return Spec(("batch", *self.sequence_shape), "int32", "Bytes of text in pieces of one length.", 0, 255)

    @property
    def frame_spec(self) -> Spec:
        """A piece of text."""
        return Spec(("batch", self.sequence_shape[1]), "int32", "Bytes of the next piece of text.", 0, 255)


ENCODERS: dict[str, type[FrameEncoder]] = {
    "dense": DenseEncoder,
    "audio": AudioEncoder,
    "patches": PatchEncoder,
    "text": TextEncoder,
}


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class CPC(ZooModel):
    """Represents sequences by what helps to tell their future from other samples.

    The model takes sequences `(batch, *sequence_shape)` and returns a dict of `"latents"` `(batch, time, latent_dim)` and
    `"contexts"` `(batch, time, context_dim)`, with an axis of 7 columns after the time for crops of images. `fit` needs no
    targets and no loss. It reports the paper's loss, which depends on the number of candidates and so on the size of
    batches, and for every step ahead k the bound on mutual information in nats, `information_at_<k>`.

    Args:
        sequence_shape: sequence of ints. Shape of a sequence without the batch: (time, features) for `"dense"`, (samples,)
            for `"audio"`, (height, width, channels) for `"patches"`, (pieces, bytes of each) for `"text"`.
        encoder: str. `"dense"` (vectors, rows of images), `"audio"` (five convolutions on 16 kHz sound), `"patches"`
            (a 7 x 7 grid of crops) or `"text"`.
        encoder_dims: sequence of ints. Sizes of the encoder's layers, the latent's last: dense layers, the filters of the
            five convolutions, those of the residual blocks, or embedding and latent of text. Defaults to `(64, 32)`.
        context_dim: int. Units of the GRU. Defaults to 64.
        num_predictions: int. P, steps that are predicted ahead, each by a matrix of its own. Defaults to 3.
        negatives: str. Wrong candidates: `"batch_time"` (the latents of all other places of the batch), `"batch"` (those of
            the same time in other sequences), `"same_sequence"` (other times of the same sequence) or `"excl_current"` (all
            latents of other sequences). Defaults to `"batch_time"`.
        positions: str. Contexts of a training batch: `"all"` times t with t + P <= T, or one `"random"` t. Held-out values
            are of all. Defaults to `"all"`.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("cpc")                                             # rows of digits, from top to bottom
    features = model.represent(rows)                                   # (num_images, 64), for a linear classifier
    outputs = model.run("step", frame=row, state=state)                # row by row, in constant time
    nats = model.information(rows)                                     # bound for every step ahead
    ```

    Reference:
        van den Oord, Li, Vinyals 2018, "Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748.
    """

    def __init__(
        self,
        sequence_shape: Sequence[int],
        encoder: Literal["dense", "audio", "patches", "text"] = "dense",
        encoder_dims: Sequence[int] = (64, 32),
        context_dim: int = 64,
        num_predictions: int = 3,
        negatives: Literal["batch_time", "batch", "same_sequence", "excl_current"] = "batch_time",
        positions: Literal["all", "random"] = "all",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value, known in (
            ("encoder", encoder, tuple(ENCODERS)),
            ("negatives", negatives, NEGATIVES),
            ("positions", positions, POSITIONS),
        ):
            require(value in known, name, f"one of {known}", value)
        dims = tuple(encoder_dims)
        require(len(dims) > 0 and min(dims) >= 1, "encoder_dims", "sizes of at least 1", encoder_dims)
        require(context_dim >= 1, "context_dim", "at least 1", context_dim)
        self.sequence_shape = tuple(sequence_shape)
        self.encoder_name = encoder
        self.encoder_dims = dims
        self.context_dim = context_dim
        self.num_predictions = num_predictions
        self.negatives = negatives
        self.positions = positions
        self.encoder = ENCODERS[encoder](self.sequence_shape, dims, dtype=self.dtype_policy, name="encoder")
        longest = self.encoder.num_frames - 1
        expected = f"from 1 to {longest}, one less than the {longest + 1} frames of a sequence"
        require(1 <= num_predictions <= longest, "num_predictions", expected, num_predictions)
        self.context_network = layers.GRU(
            context_dim, return_sequences=True, dtype=self.dtype_policy, name="context_network"
        )
        # W_k of equation 3
        self.predictors = [
            layers.Dense(self.encoder.latent_dim, use_bias=False, dtype=self.dtype_policy, name=f"predictor_{k}")
            for k in range(1, num_predictions + 1)
        ]
        self.information_trackers = [
            keras.metrics.Mean(name=f"information_at_{k}") for k in range(1, num_predictions + 1)
        ]
        self.seed_generator = keras.random.SeedGenerator()
        self.build((None, *self.sequence_shape))

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the weights."""
        self.encoder.build(input_shape)
        # A latent comes with its neighbours to both sides, where there are columns.
        width = 1 if self.encoder.num_columns is None else 3
        self.context_network.build((None, None, width * self.encoder.latent_dim))
        for predictor in self.predictors:
            predictor.build((None, self.context_dim))

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Reads sequences.

        Args:
            inputs: tensor `(batch, *sequence_shape)`; vectors, sounds and texts may also be of other lengths.
            training: bool. Without effect.

        Returns:
            Dict of float32 tensors `"latents"` and `"contexts"`.

        Raises:
            ValueError: for sequences of another shape.
            TypeError: for whole numbers where text is not what is read, and others where it is.
        """
        self._check(inputs)
        latents = self.encoder(inputs)
        return {"latents": ops.cast(latents, "float32"), "contexts": self._contexts(latents, self.context_network)}

    def _check(self, inputs: Any) -> None:
        spec, shape = self.encoder.sequence_spec, tuple(inputs.shape)
        fixed = self.sequence_shape if self.encoder.num_columns else self.sequence_shape[1:]
        fits = len(shape) == len(spec.shape) and shape[len(shape) - len(fixed) :] == fixed
        require(fits, "inputs", f"sequences {spec.shape}", shape)
        text = spec.dtype == "int32"
        if text != keras.backend.is_int_dtype(inputs.dtype):
            kind = "whole numbers, bytes of text" if text else "of a float dtype"
            raise TypeError(f"`inputs` must be {kind}. Received: dtype={inputs.dtype}")

    # === Contexts ===

    def _contexts(self, latents: Any, network: Any) -> Any:
        """Returns contexts in float32 for latents, read over time by a network, column by column."""
        columns = self.encoder.num_columns
        if columns is None:
            return ops.cast(network(latents), "float32")
        surroundings = ops.transpose(_with_neighbours(latents), (0, 2, 1, 3))
        frames, features = surroundings.shape[2:]
        contexts = network(ops.reshape(surroundings, (-1, frames, features)))
        contexts = ops.reshape(contexts, (-1, columns, frames, self.context_dim))
        return ops.cast(ops.transpose(contexts, (0, 2, 1, 3)), "float32")

    def _unrolled(self, latents: Any) -> Any:
        """Does what the GRU does, frame by frame: LiteRT has no loops over frames for batches of any size."""
        state = ops.zeros((ops.shape(latents)[0], self.context_dim), self.compute_dtype)
        contexts = []
        for index in range(latents.shape[1]):
            state, _ = self.context_network.cell(latents[:, index], [state])
            contexts.append(state)
        return ops.stack(contexts, axis=1)

    # === Loss ===

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the loss in nats, the mean over steps ahead; `y_pred` is what `call` returned.

        Raises:
            ValueError: for targets or weights, single sequences (but with `"same_sequence"`), and too short ones.
        """
        require(y is None, "y", "None: sequences are their own targets", type(y))
        require(sample_weight is None, "sample_weight", "None", type(sample_weight))
        found = self._bounds(**y_pred, one=training and self.positions == "random")
        for tracker, bound in zip(self.information_trackers, found, strict=True):
            tracker.update_state(bound)
        batch, frames = ops.shape(y_pred["latents"])[:2]
        num_candidates = ops.cast(self.num_candidates(batch, frames), "float32")
        return ops.log(num_candidates) - sum(found) / self.num_predictions

    def num_candidates(self, batch_size: Any, num_frames: Any = None) -> Any:
        """Returns N, the candidates for each context, the right one among them: no bound is above log N.

        Args:
            batch_size: int or scalar tensor. Sequences of a batch.
            num_frames: int or scalar tensor. Length of the sequences in frames. Defaults to that of `sequence_shape`.
        """
        frames = self.encoder.num_frames if num_frames is None else num_frames
        places = frames * (self.encoder.num_columns or 1)
        return {
            "batch": batch_size,
            "same_sequence": places,
            "batch_time": batch_size * places,
            "excl_current": (batch_size - 1) * places + 1,
        }[self.negatives]

    def _bounds(self, latents: Any, contexts: Any, one: bool = False) -> list[Any]:
        """Returns InfoNCE for every number of steps ahead, at all times t with t + P <= T or at one of them."""
        latents, contexts = _with_columns(latents), _with_columns(contexts)
        frames = ops.shape(latents)[1]
        expected = f"sequences of more than {self.num_predictions} frames, of which as many are predicted"
        require(not isinstance(frames, int) or frames > self.num_predictions, "inputs", expected, latents.shape)
        if self.negatives != "same_sequence":
            _require_others(latents)
        start, count = 0, frames - self.num_predictions
        if one:
            start, count = keras.random.randint((), 0, count, seed=self.seed_generator), 1
        contexts = contexts[:, start : start + count]
        return [
            self._bound(ops.cast(predictor(contexts), "float32"), latents, start + ahead)
            for ahead, predictor in enumerate(self.predictors, start=1)
        ]

    def _bound(self, predictions: Any, latents: Any, first: Any) -> Any:
        """Returns InfoNCE of predictions `(batch, n, columns, dim)` of the latents from frame `first` on."""
        shape = ops.shape(latents)
        batch, frames, columns, dim = (shape[axis] for axis in range(4))
        count = ops.shape(predictions)[1]
        if self.negatives == "batch":
            # A matrix for each place, with the sequences as rows and as columns
            futures = ops.transpose(latents[:, first : first + count], (1, 2, 3, 0))
            return ops.mean(bounds.info_nce(ops.matmul(ops.transpose(predictions, (1, 2, 0, 3)), futures)))
        places = frames * columns
        predictions = ops.reshape(predictions, (batch, count * columns, dim))
        candidates = ops.reshape(latents, (batch, places, dim))
        right = ops.arange(count * columns, dtype="int32") + first * columns
        right = ops.broadcast_to(ops.reshape(right, (1, -1)), (batch, count * columns))
        if self.negatives == "same_sequence":
            scores = ops.matmul(predictions, ops.transpose(candidates, (0, 2, 1)))
            return ops.mean(bounds.info_nce(scores, positives=right))
        own = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1))
        right = ops.reshape(right + own * places, (-1,))
        scores = ops.matmul(ops.reshape(predictions, (-1, dim)), ops.transpose(ops.reshape(candidates, (-1, dim))))
        return bounds.info_nce(scores, positives=right, mask=self._mask(own, right, count * columns, places))

    def _mask(self, own: Any, right: Any, num_rows: Any, places: Any) -> Any:
        """Returns where candidates count: for `excl_current` in other sequences, and the right one."""
        if self.negatives != "excl_current":
            return None
        batch = ops.shape(own)[0]
        row = ops.reshape(ops.broadcast_to(own, (batch, num_rows)), (-1, 1))
        column = ops.reshape(ops.broadcast_to(own, (batch, places)), (1, -1))
        index = ops.reshape(ops.arange(batch * places, dtype="int32"), (1, -1))
        return ops.logical_or(row != column, index == ops.reshape(right, (-1, 1)))

    # === Use ===

    def information(self, sequence: Any, batch_size: int = EVALUATION_SEQUENCES) -> np.ndarray:
        """Returns the bound on the mutual information of contexts and what comes 1 to P steps later, in nats.

        Args:
            sequence: array-like `(num_sequences, *sequence_shape)`.
            batch_size: int. Sequences of a batch, from which candidates come: estimates with others do not compare. What
                does not fill the last batch is left out.

        Returns:
            Float array `(num_predictions,)`.

        Raises:
            ValueError: for sequences of another shape or range, and fewer than a batch of them.
        """
        sequence = self._checked(sequence)
        total = len(sequence)
        require(1 <= batch_size <= total, "batch_size", f"from 1 to the number of sequences, {total}", batch_size)
        parts = batches({"sequence": sequence}, batch_size)
        return np.mean([self._bounds(**self(tf.constant(part["sequence"]))) for part in parts], axis=0)

    def represent(self, sequence: Any, pooling: Literal["last", "mean"] = "last") -> np.ndarray:
        """Returns a vector for every sequence.

        Args:
            sequence: array-like `(num_sequences, *sequence_shape)`.
            pooling: str. The `"last"` context, which has read everything, or the `"mean"` of all times. Columns of crops are
                averaged. Defaults to `"last"`.

        Returns:
            Float array `(num_sequences, context_dim)`.
        """
        require(pooling in ("last", "mean"), "pooling", "'last' or 'mean'", pooling)
        sequence = self._checked(sequence)
        parts = [sequence[start : start + 256] for start in range(0, len(sequence), 256)]
        contexts = _with_columns(np.concatenate([self(tf.constant(part))["contexts"] for part in parts]))
        contexts = contexts[:, -1] if pooling == "last" else ops.mean(contexts, axis=1)
        return np.asarray(ops.mean(contexts, axis=1))

    def frame(self, sequence: Any, index: int) -> np.ndarray:
        """Returns what `step` takes of sequences at a time: a vector, a piece of sound or of text, a strip of an image."""
        last = self.encoder.num_frames - 1
        require(0 <= index <= last, "index", f"from 0 to {last}", index)
        return self.encoder.frame(self._checked(sequence), index)

    def _checked(self, sequence: Any) -> np.ndarray:
        return self._signature("encode").check({"sequence": sequence})["sequence"]

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `encode` (frame by frame), `encode_context` (whole sequences) and `step` (state in, state out)."""
        columns = () if self.encoder.num_columns is None else (self.encoder.num_columns,)
        sequence = {"sequence": self.encoder.sequence_spec}
        state = Spec(("batch", *columns, self.context_dim), "float32", "Context so far; zeros before the first frame.")
        return {
            "encode_context": Signature(
                self._encode_context, sequence, {"contexts": "What was read up to each frame, (batch, frames, size)."}
            ),
            "encode": Signature(
                lambda sequence: {"latents": self._latents(self.encoder, sequence)},
                sequence,
                {"latents": "Latent of each frame alone, (batch, frames, size)."},
            ),
            "step": Signature(
                self._step,
                {"frame": self.encoder.frame_spec, "state": state},
                {"context": "What was read up to this frame.", "state_out": "Next call's `state`."},
            ),
        }

    def _latents(self, function: Any, inputs: Any) -> Any:
        integer = keras.backend.is_int_dtype(inputs.dtype)
        return ops.cast(function(inputs if integer else ops.cast(inputs, self.compute_dtype)), "float32")

    def _encode_context(self, sequence: Any) -> dict[str, Any]:
        return {"contexts": self._contexts(self._latents(self.encoder, sequence), self._unrolled)}

    def _step(self, frame: Any, state: Any) -> dict[str, Any]:
        latents = self._latents(self.encoder.encode_frame, frame)
        if self.encoder.num_columns is not None:
            latents = _with_neighbours(latents)
        rows = ops.reshape(latents, (-1, latents.shape[-1]))
        context, _ = self.context_network.cell(rows, [ops.cast(ops.reshape(state, (-1, self.context_dim)), rows.dtype)])
        context = ops.cast(ops.reshape(context, (-1, *state.shape[1:])), "float32")
        return {"context": context, "state_out": ops.copy(context)}

    # === Held-out data ===

    def sequences_of(self, dataset: str, split: str) -> np.ndarray:
        """Returns a data set as sequences `(num_sequences, *sequence_shape)`: images, or a text cut into parts.

        Args:
            dataset: str. Name for `zoo.datasets.load`.
            split: str.
        """
        if isinstance(self.encoder, TextEncoder):
            text = np.frombuffer(load_text(dataset, split).encode(), "uint8").astype("int32")
            size = int(np.prod(self.sequence_shape))
            return text[: len(text) // size * size].reshape(-1, *self.sequence_shape)
        return labelled_images(dataset, split)["x"].reshape(-1, *self.sequence_shape)

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields held-out sequences of the data set the checkpoint names, or their frames with the states before them.

        Args:
            signature: str.
            batch_size: int. An incomplete last batch is left out.
        """
        if self.metadata is None:
            return
        sequences = self.sequences_of(self.metadata.evaluation_dataset, "validation")
        for batch in batches({"sequence": sequences}, batch_size):
            if signature != "step":
                yield batch
                continue
            contexts = self.run("encode_context", **batch)["contexts"]
            states = np.concatenate([np.zeros_like(contexts[:, :1]), contexts[:, :-1]], axis=1)
            for index in range(self.encoder.num_frames):
                yield {"frame": self.encoder.frame(batch["sequence"], index), "state": states[:, index]}

    def task_metric(self) -> TaskMetric | None:
        """Returns the mean bound over steps ahead on held-out batches of 60 sequences; `None` without a checkpoint."""
        if self.metadata is None:
            return None

        def compute(run: Runner) -> float:
            sequences = self.sequences_of(self.metadata.evaluation_dataset, "test")
            found = []
            for batch in batches({"sequence": sequences}, EVALUATION_SEQUENCES):
                latents = run("encode", batch)["latents"]
                found.append(self._bounds(tf.constant(latents), tf.constant(run("encode_context", batch)["contexts"])))
            return float(np.mean(found))

        return TaskMetric("information_in_nats", compute, higher_is_better=True, absolute_tolerance=0.05)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "sequence_shape": list(self.sequence_shape),
            "encoder": self.encoder_name,
            "encoder_dims": list(self.encoder_dims),
            "context_dim": self.context_dim,
            "num_predictions": self.num_predictions,
            "negatives": self.negatives,
            "positions": self.positions,
        }


# === Parts ===


def _with_columns(values: Any) -> Any:
    """Returns values `(batch, frames, columns, size)`, with one column where they come without."""
    return values if len(values.shape) == 4 else ops.expand_dims(values, 2)


def _with_neighbours(latents: Any) -> Any:
    """Returns latents `(..., columns, size)` with those to the left and to the right, `(..., columns, 3 size)`."""
    columns = latents.shape[-2]
    padded = ops.pad(latents, (*[(0, 0)] * (len(latents.shape) - 2), (1, 1), (0, 0)))
    return ops.concatenate([padded[..., i : i + columns, :] for i in range(3)], axis=-1)


def _require_others(latents: Any) -> None:
    """Raises unless a batch has two sequences: candidates of a single one would be its own, or none but the right one."""
    expected = "batches of at least 2 sequences, which the wrong candidates come from (or `negatives` 'same_sequence')"
    batch = latents.shape[0]
    if batch is not None:
        require(batch >= 2, "inputs", expected, f"{batch} sequence")
    else:
        # Known at run time only; the message is that of the error above.
        message = f"`inputs` must be {expected}. Received: 1 sequence"
        tf.debugging.assert_greater(ops.shape(latents)[0], 1, message=message)
