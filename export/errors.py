"""What can go wrong in an export."""


class ExportError(ValueError):
    """A model, or one artifact of it, cannot be exported as asked."""


class VerificationError(ExportError):
    """An artifact does not compute what the Keras model computes."""


class GateError(ExportError):
    """A compressed artifact is worse in its task than it may be."""
