"""InfoNCE: how much two views tell about each other, by telling the right pair from wrong ones.

van den Oord, Li, Vinyals 2018 (https://arxiv.org/abs/1807.03748), equation 4. A critic f(x, c) scores every candidate x_j of
a batch for every context c_i; the right one is x_i. The cross-entropy L of finding it gives a lower bound on I(X; C):

    I_NCE = log K - L,    L = -E_i [log exp f(x_i, c_i) / sum_j exp f(x_j, c_i)]

Of low variance, but never above log K: estimates are of a stated number of candidates K, and those of different K do not
compare. The best critic is log p(x | c) / p(x) plus any function of c.

Checked against: `tfp.vi.mutual_information`, exact expectations on discrete variables, closed forms of Gaussian pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from zoo.arguments import require
from zoo.information import bounds
from zoo.information.critics import EmbeddingCritic, make_critic
from zoo.information.image_pairs import batches, image_halves
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel

# Candidates of held-out estimates: 180 and 360 images, of validation and test, are 3 and 6 batches.
EVALUATION_CANDIDATES = 60
# Pairs scored at once in `estimate`.
CHUNK = 2**20


@keras.saving.register_keras_serializable(package="zoo")
class InfoNCE(ZooModel):
    """Bounds, and maximises, the mutual information of two arrays of paired samples.

    The model's input, in `fit` and when called, is a dict of paired samples: `"x"` `(batch, x_dim)` and `"context"`
    `(batch, context_dim)`; its output is the matrix of scores `(batch, batch)` of every context (row) with every candidate
    (column). `fit` needs no targets and no loss; it takes the other samples of a batch as the wrong candidates, and
    reports the negative bound as `loss`, so that batch sizes of training and validation are part of the setting.

    Args:
        x_dim: int. Number of features of x.
        context_dim: int. Number of features of the context.
        critic: str. `"separable"` (two networks and an inner product), `"bilinear"` (x' W c, the paper's), `"inner"` (x' c,
            without weights: for embeddings that are trained elsewhere) or `"mlp"` (a network on both, K^2 evaluations).
            Defaults to `"separable"`.
        hidden_dims: sequence of ints. Sizes of the hidden layers of `"separable"` and `"mlp"`. Defaults to `(100,)`.
        embedding_dim: int. Output size of the networks of `"separable"`. Defaults to 100.
        activation: str. Of the hidden layers. Defaults to `"relu"`.
        symmetric: bool. Whether to tell contexts of an x apart too. Defaults to False.
        temperature: float by which scores are divided. Defaults to 1.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("info_nce")                                   # upper and lower halves of digits
    nats = model.estimate(x, context, num_candidates=60)
    scores = model.run("score", context=context, x=x)["scores"]   # (contexts, candidates)
    embedding = model.run("encode", x=x)["embedding"]
    ```

    Reference:
        van den Oord, Li, Vinyals 2018, "Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748;
        Poole et al. 2019, "On Variational Bounds of Mutual Information", arXiv 1905.06922.
    """

    def __init__(
        self,
        x_dim: int,
        context_dim: int,
        critic: Literal["bilinear", "inner", "separable", "mlp"] = "separable",
        hidden_dims: Sequence[int] = (100,),
        embedding_dim: int = 100,
        activation: str = "relu",
        symmetric: bool = False,
        temperature: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, size in (("x_dim", x_dim), ("context_dim", context_dim)):
            require(size >= 1, name, "at least 1", size)
        require(0 < temperature < np.inf, "temperature", "positive and finite", temperature)
        self.x_dim = x_dim
        self.context_dim = context_dim
        self.critic_name = critic
        self.hidden_dims = tuple(hidden_dims)
        self.embedding_dim = embedding_dim
        self.activation = activation
        self.symmetric = symmetric
        self.temperature = float(temperature)
        self.critic = make_critic(
            critic, self.hidden_dims, embedding_dim, activation, dtype=self.dtype_policy, name="critic"
        )
        self.build({"x": (None, x_dim), "context": (None, context_dim)})

    def build(self, input_shape: Mapping[str, Sequence[int | None]]) -> None:
        """Creates the critic."""
        self.critic.build(input_shape["context"], input_shape["x"])

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Scores every context with every candidate.

        Args:
            inputs: dict of tensors, `"x"` `(candidates, x_dim)` and `"context"` `(contexts, context_dim)`; leading axes
                before these are sets of their own.
            training: bool. Without effect.

        Returns:
            Tensor `(contexts, candidates)`.
        """
        require(
            isinstance(inputs, Mapping) and set(inputs) == {"x", "context"},
            "inputs",
            "a dict of 'x' and 'context'",
            sorted(inputs) if isinstance(inputs, Mapping) else type(inputs),
        )
        return self._scores(inputs["context"], inputs["x"])

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the negative bound in nats; `y_pred` is what `call` returned."""
        require(y is None, "y", "None: both samples are in one dict, {'x': ..., 'context': ...}", type(y))
        require(sample_weight is None, "sample_weight", "None", type(sample_weight))
        return -self.bound(y_pred)

    def bound(self, scores: Any) -> Any:
        """Returns InfoNCE of scores `(..., K, K)`, in nats."""
        return bounds.info_nce(scores, symmetric=self.symmetric, temperature=self.temperature)

    def _scores(self, context: Any, x: Any) -> Any:
        return ops.cast(self.critic(context, x), "float32")

    # === Use ===

    def estimate(self, x: Any, context: Any, num_candidates: int = EVALUATION_CANDIDATES, seed: int = 0) -> float:
        """Returns the bound on I(X; C) from pairs that the critic was not trained with, in nats; at most log K.

        Args:
            x: array-like `(num_pairs, x_dim)`.
            context: array-like `(num_pairs, context_dim)`.
            num_candidates: int. K; the bound is averaged over batches of so many pairs, and what does not fill the last one
                is left out.
            seed: int. Seed of the order in which pairs are put into batches.

        Raises:
            ValueError: for arrays of other shapes or lengths, NaN, and a K below 2 or above the number of pairs.
        """
        checked = self._signature("score").check({"x": x, "context": context})
        total = len(checked["x"])
        require(
            len(checked["context"]) == total, "context", f"{total} rows, as `x` is", f"shape={checked['context'].shape}"
        )
        require(
            2 <= num_candidates <= total, "num_candidates", f"from 2 to the number of pairs, {total}", num_candidates
        )
        order = np.random.default_rng(seed).permutation(total)[: total // num_candidates * num_candidates]
        sets = {name: value[order].reshape(-1, num_candidates, value.shape[1]) for name, value in checked.items()}
        at_once = max(CHUNK // num_candidates**2, 1)
        starts = range(0, len(sets["x"]), at_once)
        parts = [{name: value[i : i + at_once] for name, value in sets.items()} for i in starts]
        return float(np.mean(np.concatenate([self.bound(self(part)) for part in parts])))

    def signatures(self) -> dict[str, Signature]:
        """Returns `score`, and the embeddings of x and context where the critic is an inner product of such."""
        context = Spec(("batch", self.context_dim), "float32", "Contexts.")
        signatures = {
            "score": Signature(
                lambda context, x: {"scores": self._scores(context, x)},
                {"context": context, "x": Spec(("candidates", self.x_dim), "float32", "Candidates for each context.")},
                {
                    "scores": "Score of each candidate for each context: log of how much likelier the pair is than chance, "
                    "up to a constant of the context, (batch, candidates)."
                },
                sizes={"candidates": 5},
            )
        }
        if isinstance(self.critic, EmbeddingCritic):
            signatures["encode"] = Signature(
                lambda x: {"embedding": self._embed(self.critic.embed_y, x)},
                {"x": Spec(("batch", self.x_dim), "float32", "Candidates.")},
                {"embedding": "Embedding of each x; its product with that of a context is the score, (batch, size)."},
            )
            signatures["encode_context"] = Signature(
                lambda context: {"context_embedding": self._embed(self.critic.embed_x, context)},
                {"context": context},
                {"context_embedding": "Embedding of each context, (batch, size)."},
            )
        return signatures

    def _embed(self, function: Any, inputs: Any) -> Any:
        return ops.cast(function(ops.cast(inputs, self.compute_dtype)), "float32")

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields held-out halves of images of the data set the checkpoint names; nothing without a checkpoint.

        Args:
            signature: str.
            batch_size: int. Number of contexts (of images for the embeddings); an incomplete last batch is left out.
        """
        if self.metadata is None:
            return
        pairs = image_halves(self.metadata.evaluation_dataset, "validation")
        for batch in batches(pairs, batch_size):
            if signature == "score":
                yield {"context": batch["context"], "x": pairs["x"][:EVALUATION_CANDIDATES]}
            else:
                yield {name: batch[name] for name in self.signatures()[signature].inputs}

    def task_metric(self) -> TaskMetric | None:
        """Returns the bound on held-out pairs of 60 candidates, in nats; `None` without a checkpoint."""
        if self.metadata is None:
            return None

        def compute(run: Runner) -> float:
            pairs = image_halves(self.metadata.evaluation_dataset, "test")
            scores = [run("score", batch)["scores"] for batch in batches(pairs, EVALUATION_CANDIDATES)]
            return float(np.mean(self.bound(np.stack(scores))))

        return TaskMetric(
            f"info_nce_at_{EVALUATION_CANDIDATES}", compute, higher_is_better=True, absolute_tolerance=0.05
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "x_dim": self.x_dim,
            "context_dim": self.context_dim,
            "critic": self.critic_name,
            "hidden_dims": list(self.hidden_dims),
            "embedding_dim": self.embedding_dim,
            "activation": self.activation,
            "symmetric": self.symmetric,
            "temperature": self.temperature,
        }
