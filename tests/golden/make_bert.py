"""Makes `bert.npz`: weights and hidden states of Hugging Face's PyTorch `BertModel` on a padded batch.

Run once, in an environment of its own: `pip install torch "transformers==4.57.1"`, then `python tests/golden/make_bert.py`.
The test that reads the file needs neither.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24,
    max_position_embeddings=12, attn_implementation="eager",
)  # fmt: skip
model = BertModel(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.3)
arrays = {f"weight:{name}": value.detach().numpy() for name, value in model.named_parameters()}
tokens = torch.randint(0, 30, (4, 9))
segments = (torch.arange(9) >= 4).int().repeat(4, 1)
mask = (torch.arange(9)[None] < torch.tensor([9, 7, 5, 2])[:, None]).int()
with torch.no_grad():
    outputs = model(input_ids=tokens, token_type_ids=segments.long(), attention_mask=mask)
arrays |= {"token_ids": tokens.numpy().astype("int32"), "segment_ids": segments.numpy(), "padding_mask": mask.numpy()}
arrays |= {"hidden": outputs.last_hidden_state.numpy(), "pooled": outputs.pooler_output.numpy()}
np.savez_compressed(Path(__file__).with_name("bert.npz"), **arrays)
