"""Makes `transformer_xl.npz`: weights and outputs of Hugging Face's PyTorch Transformer-XL on three segments.

Run once, in an environment of its own: `pip install torch "transformers==4.35.2" "numpy<2"`, then
`python tests/golden/make_transformer_xl.py`. The test that reads the file needs neither.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import TransfoXLConfig, TransfoXLLMHeadModel

torch.manual_seed(0)
config = TransfoXLConfig(
    vocab_size=30, cutoffs=[10, 20], d_model=16, d_embed=16, n_head=2, d_head=8, d_inner=24, div_val=2, n_layer=2,
    mem_len=6, clamp_len=-1, same_length=False, dropout=0.0, dropatt=0.0, untie_r=True, proj_share_all_but_first=True,
)  # fmt: skip
model = TransfoXLLMHeadModel(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
model.tie_weights()
arrays = {f"weight:{name}": value.numpy() for name, value in model.state_dict().items()}
segments = torch.randint(0, 30, (3, 2, 4))
memory = None
with torch.no_grad():
    for index, segment in enumerate(segments):
        outputs = model(segment, mems=memory)
        memory = outputs.mems
        arrays[f"tokens_{index}"] = segment.numpy().astype("int32")
        arrays[f"log_probs_{index}"] = outputs.prediction_scores.numpy()
        arrays[f"memory_{index}"] = torch.stack(list(memory)).numpy()
np.savez_compressed(Path(__file__).with_name("transformer_xl.npz"), **arrays)
