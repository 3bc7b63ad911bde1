"""Adaptive input embedding and adaptive softmax: frequent words get wide vectors, rare ones narrow vectors."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="zoo")
class AdaptiveEmbedding(keras.layers.Layer):
    """Embedding of a vocabulary sorted by frequency and cut into bins of shrinking width.

    Bin i covers the ids from `cutoffs[i-1]` to `cutoffs[i]` with vectors of width `hidden_dim // divisor**i`, projected to
    `hidden_dim`; with `divisor=1` there are no projections. Without cutoffs it is a plain embedding.

    Args:
        vocabulary_size: int.
        hidden_dim: int. Width of the output.
        cutoffs: sequence of int. Increasing, below `vocabulary_size`.
        divisor: int. Ratio of the widths of neighbouring bins.
        initializer_stddev: float. Tables start from N(0, stddev^2).
        projection_stddev: float. Projections start from N(0, stddev^2).
        project_first_bin: bool. Whether the first bin, already `hidden_dim` wide, has a projection too (where
            `divisor` exceeds 1).

    Input: int tensor `(batch, length)`. Output: float tensor `(batch, length, hidden_dim)`.

    Reference:
        Grave et al. 2017; Baevski and Auli 2019, section 3.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_dim: int,
        cutoffs: Sequence[int] = (),
        divisor: int = 1,
        initializer_stddev: float = 0.02,
        projection_stddev: float = 0.01,
        project_first_bin: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if list(cutoffs) != sorted({*cutoffs}) or (cutoffs and not 0 < cutoffs[0] <= cutoffs[-1] < vocabulary_size):
            raise ValueError(f"`cutoffs` must increase within (0, {vocabulary_size}). Received: cutoffs={cutoffs}")
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.cutoffs = tuple(cutoffs)
        self.divisor = divisor
        self.initializer_stddev = initializer_stddev
        self.projection_stddev = projection_stddev
        self.project_first_bin = project_first_bin
        self.edges = (0, *self.cutoffs, vocabulary_size)

    @property
    def bins(self) -> list[tuple[int, int]]:
        """First id and id after the last of every bin."""
        return list(itertools.pairwise(self.edges))

    def build(self, input_shape: Any = None) -> None:
        """Creates tables and projections."""
        self.tables = [self._add_table(index, stop - start) for index, (start, stop) in enumerate(self.bins)]
        self.projections = [self.add_projection(self, index) for index in range(len(self.bins))]

    def _add_table(self, index: int, rows: int) -> Any:
        return self.add_weight(
            name=f"table_{index}",
            shape=(rows, self.hidden_dim // self.divisor**index),
            initializer=keras.initializers.RandomNormal(stddev=self.initializer_stddev),
        )

    def add_projection(self, owner: keras.layers.Layer, index: int) -> Any:
        """Creates the projection of a bin, `(bin width, hidden_dim)`, as a weight of `owner`; None where it has none."""
        if self.divisor == 1 or (index == 0 and not self.project_first_bin):
            return None
        return owner.add_weight(
            name=f"projection_{index}",
            shape=(self.hidden_dim // self.divisor**index, self.hidden_dim),
            initializer=keras.initializers.RandomNormal(stddev=self.projection_stddev),
        )

    def call(self, inputs: Any) -> Any:
        """Looks ids up."""
        if len(self.bins) == 1:
            return self._lookup(0, inputs)
        return sum(self._lookup_bin(index, inputs) for index in range(len(self.bins)))

    def _lookup(self, index: int, ids: Any) -> Any:
        vectors = ops.take(ops.cast(self.tables[index], self.compute_dtype), ids, axis=0)
        projection = self.projections[index]
        return vectors if projection is None else ops.matmul(vectors, ops.cast(projection, vectors.dtype))

    def _lookup_bin(self, index: int, ids: Any) -> Any:
        start, stop = self.bins[index]
        inside = ops.logical_and(ids >= start, ids < stop)
        vectors = self._lookup(index, ops.clip(ids - start, 0, stop - start - 1))
        return vectors * ops.cast(ops.expand_dims(inside, -1), vectors.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "cutoffs": list(self.cutoffs),
            "divisor": self.divisor,
            "initializer_stddev": self.initializer_stddev,
            "projection_stddev": self.projection_stddev,
            "project_first_bin": self.project_first_bin,
        }


@keras.saving.register_keras_serializable(package="zoo")
class AdaptiveLogSoftmax(keras.layers.Layer):
    """Output layer tied to an `AdaptiveEmbedding`.

    A head softmax covers the first bin and one entry for each later bin; log p(w) = log p(bin) + log p(w | bin). The
    tables are the embedding's own; the first bin's projection never is.

    Args:
        embedding: `AdaptiveEmbedding`, built.
        tie_projections: bool. Whether the projections of the later bins are the embedding's own too.

    Input: float tensor `(batch, length, hidden_dim)`. Output: logits `(batch, length, vocabulary_size)`; with more than
    one bin they are log-probabilities, which are valid logits too.

    Reference:
        Grave et al. 2017, section 4; Dai et al. 2019, released code (`proj_share_all_but_first`, `proj_same_dim`).
    """

    def __init__(self, embedding: AdaptiveEmbedding, tie_projections: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding = embedding
        self.tie_projections = tie_projections

    def build(self, input_shape: Any) -> None:
        """Creates biases, cluster entries and the projections that are not tied."""
        embedding = self.embedding
        self.bias = self.add_weight(name="bias", shape=(embedding.vocabulary_size,), initializer="zeros")
        num_tails = len(embedding.bins) - 1
        self.projections = [
            embedding.add_projection(self, index) for index in range(1 if self.tie_projections else num_tails + 1)
        ]
        if num_tails:
            self.cluster_kernel = self.add_weight(
                name="cluster_kernel",
                shape=(num_tails, embedding.hidden_dim),
                initializer=keras.initializers.RandomNormal(stddev=embedding.initializer_stddev),
            )
            self.cluster_bias = self.add_weight(name="cluster_bias", shape=(num_tails,), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        """Returns logits over the whole vocabulary."""
        head = self._project(0, inputs)
        logits = self._bin_logits(0, head)
        num_tails = len(self.embedding.bins) - 1
        if not num_tails:
            return logits
        clusters = ops.matmul(head, ops.transpose(ops.cast(self.cluster_kernel, head.dtype)))
        clusters = clusters + ops.cast(self.cluster_bias, head.dtype)
        head_log_probs = _log_softmax(ops.concatenate([logits, clusters], axis=-1))
        first = self.embedding.edges[1]
        parts = [head_log_probs[..., :first]]
        for index in range(1, num_tails + 1):
            tail = _log_softmax(self._bin_logits(index, self._project(index, inputs)))
            parts.append(tail + head_log_probs[..., first + index - 1 : first + index])
        return ops.concatenate(parts, axis=-1)

    def _project(self, index: int, inputs: Any) -> Any:
        owner = self.embedding if self.tie_projections and index else self
        projection = owner.projections[index]
        return inputs if projection is None else ops.matmul(inputs, ops.transpose(ops.cast(projection, inputs.dtype)))

    def _bin_logits(self, index: int, hidden: Any) -> Any:
        start, stop = self.embedding.bins[index]
        table = ops.cast(self.embedding.tables[index], hidden.dtype)
        return ops.matmul(hidden, ops.transpose(table)) + ops.cast(self.bias[start:stop], hidden.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        embedding = keras.saving.serialize_keras_object(self.embedding)
        return {**super().get_config(), "embedding": embedding, "tie_projections": self.tie_projections}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AdaptiveLogSoftmax":
        """Rebuilds the layer, its embedding included."""
        return cls(**{**config, "embedding": keras.saving.deserialize_keras_object(config["embedding"])})


def _log_softmax(logits: Any) -> Any:
    return ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
