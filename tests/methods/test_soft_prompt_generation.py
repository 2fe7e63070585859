"""Generation under soft prompts equals `peft`'s generate, token for token."""

import numpy as np
import peft
import pytest
import torch

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.formats.folder import read_config
from ftjax.formats.peft.prompt_tables import pairs
from tests.generation.test_equal import Pair

LENGTH = 5
CONFIGS = {"prompt_tuning": peft.PromptTuningConfig, "prefix_tuning": peft.PrefixTuningConfig}
CASES = {"gpt2": "unrolled", "llama": "scan", "gemma": "unrolled", "t5": "scan"}


class Prompted(Pair):
    """A random model under a random soft prompt on both sides."""

    def __init__(self, name: str, case: str, folder, mesh) -> None:
        super().__init__(case, folder, mesh, CASES[case])
        method, head = methods.create({"name": name, "length": LENGTH}), self.ours.model.head
        settings = {"segments": CASES[case]}
        self.ours = build_tuned(read_config(folder), method, settings, {"head": head})
        random = np.random.default_rng(1)
        for path in self.ours.shapes.keys() - self.ours.base.shapes.keys():
            shape = self.ours.shapes[path].shape
            self.params[path] = random.normal(size=shape).astype(np.float32)
        task = "SEQ_2_SEQ_LM" if self.sequences else "CAUSAL_LM"
        config = CONFIGS[name](task_type=task, num_virtual_tokens=LENGTH)
        self.theirs = peft.get_peft_model(self.theirs, config).eval()
        table = self.theirs.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            if name == "prompt_tuning":  # of an encoder-decoder's rows, half are not used
                table[:LENGTH] = torch.tensor(self.params["prompt_embedding"])
                return
            found = pairs(method, self.ours.base, self.params)
            layers = table.view(LENGTH, config.num_layers, 2, -1)
            for number, core in enumerate(method.in_order(self.ours.base)):
                place = 2 * number % config.num_layers if self.sequences else number
                layers[:, place] = torch.tensor(np.stack(found[core], 1))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("case", CASES)
def test_greedy(name, case, one_device, tmp_path):
    pair = Prompted(name, case, tmp_path, one_device)
    settings = pair.settings()
    # peft's prompts stand before padding, at other distances from tokens: so a row at a time.
    wanted = pair.reference(settings, alone=name == "prompt_tuning")
    np.testing.assert_array_equal(pair.generate(settings), wanted)
