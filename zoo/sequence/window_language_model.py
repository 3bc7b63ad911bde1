"""What language models share that read one window of text at a time and carry nothing from it to the next."""

from typing import Any

import numpy as np
from keras import ops

from zoo.model import Spec
from zoo.sequence.recurrent_language_model import RecurrentLanguageModel, State


class WindowLanguageModel(RecurrentLanguageModel):
    """Base of language models without a memory.

    Training, evaluation and generation are those of `RecurrentLanguageModel`; windows of a stream are read independently.
    A generated token costs one pass over the window, since every token of it is read again.

    Subclasses set `vocabulary_size` and `window_length` and implement `read`.
    """

    def state_specs(self) -> dict[str, Spec]:
        """Returns nothing: there is no memory."""
        return {}

    def read(self, token_ids: Any, state: State | None = None, training: bool | None = None) -> Any:
        """Reads one window.

        Args:
            token_ids: int tensor `(batch, length)` of at most `window_length` tokens.
            state: `"length"`, where it is there, is the number of tokens, behind which there is anything.
            training: bool or None.

        Returns:
            Logits `(batch, length, vocabulary_size)` of the tokens that follow.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no reading of a window.")

    def forward(self, token_ids: Any, state: State, training: bool | None = None) -> tuple[Any, State]:
        """Reads one window, see `RecurrentLanguageModel.forward`."""
        return self.read(token_ids, state, training), state

    @property
    def signature_length(self) -> int:
        """Signatures take whole windows: attention patterns are constants of the exported graph."""
        return self.window_length

    # === Generation ===

    def decoding_specs(self) -> dict[str, Spec]:
        """Returns the tokens read so far and their number."""
        return {
            "window": Spec(("batch", self.window_length), "int32", "Tokens read, oldest first, then anything."),
            "length": Spec(("batch",), "int32", "Number of tokens read.", 0, self.window_length),
        }

    def decode_token(self, token_ids: Any, state: State) -> tuple[Any, State]:
        """Appends one token `(batch, 1)` to the window, from which the oldest one falls once it is full."""
        length = ops.reshape(state["length"], (-1, 1))
        places = ops.reshape(ops.arange(self.window_length, dtype="int32"), (1, -1))
        appended = ops.where(places == length, token_ids, state["window"])
        moved = ops.concatenate([state["window"][:, 1:], token_ids], axis=1)
        window = ops.where(length == self.window_length, moved, appended)
        length = ops.minimum(length + 1, self.window_length)
        last = ops.expand_dims(ops.cast(places == length - 1, "float32"), 1)
        state = {"window": window, "length": ops.reshape(length, (-1,))}
        return ops.matmul(last, self.read(window, state, training=False)), state

    def read_prompt(self, ids: np.ndarray) -> tuple[State, np.ndarray]:
        """Puts the end of a prompt into the window; its last token remains."""
        known = ids[:-1][-self.window_length :]
        window = np.zeros((1, self.window_length), "int32")
        window[0, : len(known)] = known
        return {"window": window, "length": np.array([len(known)], "int32")}, ids[-1:]
