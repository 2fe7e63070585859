"""Generation under soft prompts equals `peft`'s generate, token for token."""

import numpy as np
import peft
import pytest
import torch

from ftjax import methods, tuned
from ftjax.formats.folder import read_config
from tests.generation.test_equal import Pair
from tests.models.cases import CASES

LENGTH = 5
CONFIGS = {"prompt_tuning": peft.PromptTuningConfig, "prefix_tuning": peft.PrefixTuningConfig}


class Prompted(Pair):
    """A random model under a random soft prompt on both sides."""

    def __init__(self, method: str, case: str, folder, mesh, segments: str) -> None:
        super().__init__(case, folder, mesh, segments)
        made, head = methods.create({"name": method, "length": LENGTH}), self.ours.model.head
        plain = self.ours
        self.ours = tuned.build(read_config(folder), made, {"segments": segments}, {"head": head})
        random = np.random.default_rng(1)
        for path, leaf in self.ours.shapes.items():
            if path not in plain.shapes:
                self.params[path] = random.normal(size=leaf.shape).astype(np.float32)
        task = "SEQ_2_SEQ_LM" if self.sequences else "CAUSAL_LM"
        config = CONFIGS[method](
            task_type=task, num_virtual_tokens=LENGTH, num_transformer_submodules=None
        )
        self.theirs = peft.get_peft_model(self.theirs, config).eval()
        table = self.theirs.prompt_encoder["default"].embedding.weight
        if method == "prompt_tuning":
            found = made.exported(self.ours.base, self.params)
            wanted = np.concatenate([found] * (len(table) // LENGTH))
        else:
            wanted = table.detach().numpy().reshape(LENGTH, -1, 2, table.shape[1] // (2 * LAYERS))
            for number, pair in enumerate(made.pairs(self.ours.base, self.params).values()):
                layer = 2 * number % LAYERS if self.sequences else number
                wanted[:, layer] = np.stack(pair, 1)
        with torch.no_grad():
            table.copy_(torch.tensor(np.array(wanted)).reshape(table.shape))


LAYERS = 3


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("case", ["gpt2", "llama", "gemma", "t5"])
def test_greedy(method, case, one_device, tmp_path):
    assert CASES[case]().num_hidden_layers == LAYERS
    segments = "scan" if case in ("llama", "t5") else "unrolled"
    pair = Prompted(method, case, tmp_path, one_device, segments)
    settings = pair.settings()
    # peft counts positions of prompts before padding, we before tokens: so a prompt at a time.
    alone = method == "prompt_tuning"
    found = pair.generate(settings)
    np.testing.assert_array_equal(found, pair.reference(settings, alone=alone))
