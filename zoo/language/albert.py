"""ALBERT: BERT with one set of weights for all layers, and a narrow embedding.

Lan, Chen, Goodman, Gimpel, Sharma, Soricut, ICLR 2020, https://arxiv.org/abs/1909.11942.

    e   = LayerNorm(token + segment + position)              of width E, much narrower than the layers' H
    h_0 = e W + b                                            once, with no activation and no normalisation
    h_l = layer(h_{l-1})                                     one layer of BERT, L times the same

The file of weights is 9 to 18 times smaller than BERT's; the computation is not. In place of BERT's second task, segments
from other texts, which words alone give away, two consecutive segments are swapped or not (SOP). Masks cover up to three
words in a row. The output matrix of masked tokens is the token embedding, at width E.

Beyond the paper's sharing of all weights, of attention's or of the feed-forward networks': `num_groups` shares within groups
of consecutive layers, and each step may apply `num_inner_layers` layers in a row, as in the authors' code.
"""

from __future__ import annotations

from typing import Any, Literal

import keras

from zoo.arguments import require
from zoo.language.backbone import TextBackbone
from zoo.language.text_encoder import TextEncoder

SHARED = ("all", "attention", "ffn", "none")


@keras.saving.register_keras_serializable(package="zoo")
class AlbertBackbone(TextBackbone):
    """The encoder of ALBERT.

    Args:
        num_layers: int. Steps of the stack.
        share: str. See `Albert`, as for the next two.
        num_groups: int.
        num_inner_layers: int.
        **kwargs: further arguments of `TextBackbone`.
    """

    weight_arguments = (*TextBackbone.weight_arguments, "share", "num_groups", "num_inner_layers")

    def __init__(
        self,
        num_layers: int,
        share: Literal["all", "attention", "ffn", "none"] = "all",
        num_groups: int = 1,
        num_inner_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        require(num_layers >= 1, "num_layers", "positive", num_layers)
        require(share in SHARED, "share", f"one of {SHARED}", repr(share))
        require(1 <= num_groups <= num_layers, "num_groups", f"from 1 to {num_layers}", num_groups)
        require(num_inner_layers >= 1, "num_inner_layers", "positive", num_inner_layers)
        steps = [_group(step, num_layers, num_groups) if share == "all" else step for step in range(num_layers)]
        order = [step * num_inner_layers + inner for step in steps for inner in range(num_inner_layers)]
        super().__init__(num_layers=num_layers, order=order, **kwargs)
        self.share = share
        self.num_groups = num_groups
        self.num_inner_layers = num_inner_layers

    def share_parts(self, index: int) -> None:
        """Lets a layer use the shared part of its group's first step."""
        step, inner = divmod(index, self.num_inner_layers)
        groups = [_group(other, self.num_layers, self.num_groups) for other in range(self.num_layers)]
        first = groups.index(groups[step])
        if self.share not in ("attention", "ffn") or step == first:
            return
        other = self.encoder_layers[first * self.num_inner_layers + inner]
        if self.share == "attention":
            self.encoder_layers[index].share_attention(other)
        else:
            self.encoder_layers[index].share_feed_forward(other)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        del config["order"]
        sharing = {"share": self.share, "num_groups": self.num_groups, "num_inner_layers": self.num_inner_layers}
        return {**config, **sharing}


def _group(step: int, num_layers: int, num_groups: int) -> int:
    """Returns the group of a step of the stack."""
    return step * num_groups // num_layers


@keras.saving.register_keras_serializable(package="zoo")
class Albert(TextEncoder):
    """ALBERT with a head.

    Args:
        vocabulary_size: int.
        num_layers: int. How often the layer is applied.
        hidden_dim: int. Width of the layer.
        num_heads: int. Divides `hidden_dim`.
        intermediate_dim: int. Width inside the feed-forward network.
        embedding_dim: int. Width of the embeddings. At `hidden_dim` there is no map between the two. Defaults to 128.
        share: str. What all layers of a group share: `"all"` weights, those of `"attention"` or of the feed-forward
            networks, `"ffn"`, each with the normalisation after it, or `"none"`. Defaults to `"all"`.
        num_groups: int. Groups of consecutive layers, with weights of their own. Defaults to 1.
        num_inner_layers: int. Layers with weights of their own, applied one after the other at each of the `num_layers`
            steps. Defaults to 1.
        max_sequence_length: int. Positions that are learned. Defaults to 512.
        num_segments: int. Defaults to 2.
        dropout: float. Defaults to 0.
        attention_dropout: float. Rate on attention probabilities. Defaults to 0.
        activation: str. `"gelu_tanh"`, `"gelu"`, `"relu"` or `"silu"`.
        layer_norm_epsilon: float.
        initializer_stddev: float. Kernels and tables start from a normal distribution cut at two of these.
        use_pooler: bool. Whether there is a pooler, which text classification and sentence losses need.
        head: str or None. See `TextEncoder`, as for the rest.
        sentence_loss: str. Defaults to `"sop"`.
        **kwargs: further arguments of `TextEncoder`.

    Example:

    ```python
    model = zoo.get("albert", weights="path/to/albert-base-v2").with_head("classification", num_classes=3)
    model.compile("adam", metrics=["accuracy"])
    model.fit(model.text_inputs(texts), labels)
    ```

    Reference:
        Lan et al. 2020.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        embedding_dim: int = 128,
        share: Literal["all", "attention", "ffn", "none"] = "all",
        num_groups: int = 1,
        num_inner_layers: int = 1,
        max_sequence_length: int = 512,
        num_segments: int = 2,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation: str = "gelu_tanh",
        layer_norm_epsilon: float = 1e-12,
        initializer_stddev: float = 0.02,
        use_pooler: bool = True,
        head: str | None = None,
        sentence_loss: str = "sop",
        **kwargs: Any,
    ) -> None:
        super().__init__(head, sentence_loss, **kwargs)
        self.set_backbone(
            AlbertBackbone(
                num_layers,
                share,
                num_groups,
                num_inner_layers,
                vocabulary_size=vocabulary_size,
                hidden_dim=hidden_dim,
                num_heads=num_heads,
                intermediate_dim=intermediate_dim,
                embedding_dim=embedding_dim,
                max_sequence_length=max_sequence_length,
                num_segments=num_segments,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation=activation,
                layer_norm_epsilon=layer_norm_epsilon,
                initializer_stddev=initializer_stddev,
                use_pooler=use_pooler,
                dtype=self.dtype_policy,
                name="backbone",
            )
        )
