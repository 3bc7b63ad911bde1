"""One file a method: how its checkpoint is trained, and how the paper's claim is reproduced."""
