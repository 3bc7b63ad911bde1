"""Makes `lightweight_conv.npz`: inputs, weights and outputs of fairseq's convolutions.

Run once, in an environment with PyTorch and the unpacked source archive of fairseq 0.12.2
(`pip download --no-deps --no-binary :all: fairseq==0.12.2`): `python tests/golden/make_lightweight_conv.py fairseq-0.12.2`.
Only the two modules are loaded, since the package as a whole needs an older Python. The test that reads the file needs
neither.
"""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

SOURCE = Path(sys.argv[1]) / "fairseq"
DIM, HEADS, BATCH = 8, 2, 3
# Length, taps, and whether the convolution is causal: lengths above and below the number of taps.
CASES = ((11, 5, False), (11, 5, True), (4, 7, False), (4, 7, True), (40, 3, True))


def bare_package(name: str, path: Path) -> ModuleType:
    """Makes a package whose modules can be imported though its own `__init__` does not run."""
    package = ModuleType(name)
    package.__path__ = [str(path)]
    sys.modules[name] = package
    return package


fairseq = bare_package("fairseq", SOURCE)
bare_package("fairseq.modules", SOURCE / "modules")
utils = ModuleType("fairseq.utils")
utils.softmax = lambda x, dim, onnx_trace=False: torch.softmax(x.float(), dim)
utils.get_incremental_state = lambda module, state, key: module.get_incremental_state(state, key)
utils.set_incremental_state = lambda module, state, key, value: module.set_incremental_state(state, key, value)
fairseq.utils = sys.modules["fairseq.utils"] = utils

from fairseq.modules.dynamic_convolution import DynamicConv1dTBC  # noqa: E402
from fairseq.modules.lightweight_convolution import LightweightConv1dTBC  # noqa: E402

torch.manual_seed(0)
arrays = {}
with torch.no_grad():
    for index, (length, taps, causal) in enumerate(CASES):
        before = taps - 1 if causal else taps // 2
        inputs = torch.randn(length, BATCH, DIM)
        arrays[f"settings_{index}"] = np.array([HEADS, taps, causal])
        arrays[f"inputs_{index}"] = inputs.numpy().swapaxes(0, 1)
        for name, module_class in (("lightweight", LightweightConv1dTBC), ("dynamic", DynamicConv1dTBC)):
            module = module_class(DIM, taps, padding_l=before, num_heads=HEADS, weight_softmax=True).eval()
            weight = module.weight if name == "lightweight" else module.weight_linear.weight
            weight.normal_()
            arrays[f"{name}_weight_{index}"] = weight.numpy().squeeze().copy()
            arrays[f"{name}_outputs_{index}"] = module(inputs).numpy().swapaxes(0, 1)
            if causal:
                state = {}
                steps = [module(inputs[: step + 1][-1:], incremental_state=state) for step in range(length)]
                arrays[f"{name}_steps_{index}"] = torch.cat(steps).numpy().swapaxes(0, 1)
np.savez_compressed(Path(__file__).with_name("lightweight_conv.npz"), **arrays)
