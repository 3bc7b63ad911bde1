"""Makes `reformer/`: two small Hugging Face Reformers as they save them, and their logits with known hashes.

Run once, in an environment of its own: `pip install torch "transformers==4.57.1" safetensors`, then
`python tests/golden/make_reformer.py`. The test that reads the files needs neither torch nor transformers.

Logits are computed in double precision: beside their mask of -1e5, float32 leaves the logarithm of the number of rounds two
digits, so that the first token, which has nothing but itself, comes out wrong by 1e-3.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import ReformerConfig, ReformerModelWithLMHead

FOLDER = Path(__file__).with_name("reformer")
SHARED = dict(
    attention_head_size=6, attn_layers=["local", "lsh", "lsh"], feed_forward_size=20, hidden_size=12, is_decoder=True,
    lsh_attn_chunk_length=8, local_attn_chunk_length=4, max_position_embeddings=32, num_attention_heads=2, vocab_size=17,
    use_cache=False,
)  # fmt: skip
MODELS = {
    "axial": dict(axial_pos_shape=[4, 8], axial_pos_embds_dim=[4, 8], num_buckets=[2, 4], num_hashes=3, hash_seed=5),
    "learned": dict(axial_pos_embds=False, hidden_act="gelu", num_hashes=2, chunk_size_feed_forward=4),
}


def logits(model, tokens, zero: bool):
    """Returns logits and the rotations drawn on the way, layer by layer."""
    drawn, randn = [], torch.randn

    def recorded(*args, **kwargs):
        drawn.append(randn(*args, **kwargs).float() * (not zero))
        return drawn[-1].double()

    torch.randn = recorded
    try:
        with torch.no_grad():
            return model(torch.tensor(tokens)).logits.numpy(), [rotations.numpy() for rotations in drawn]
    finally:
        torch.randn = randn


for name, options in MODELS.items():
    torch.manual_seed(1)
    model = ReformerModelWithLMHead(ReformerConfig(**SHARED, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    model.save_pretrained(FOLDER / name)
    (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
    model, arrays = model.double(), {}
    rng = np.random.default_rng(0)
    for case, length in (("hashed", 32), ("one_bucket", 32), ("short", 4)):
        tokens = rng.integers(0, 17, (2, length))
        found, rotations = logits(model, tokens, zero=case == "one_bucket")
        arrays |= {f"{case}_tokens": tokens.astype("int32"), f"{case}_logits": found.astype("float32")}
        arrays |= {f"{case}_rotations_{layer}": value for layer, value in enumerate(rotations, start=1)}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
