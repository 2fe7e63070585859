"""`ftjax generate --adapter` continues as peft's model of the folder does."""

import peft
import pytest
import torch
import transformers

from ftjax.commands.entry import main
from ftjax.formats.folder import load_tokenizer

PROMPT = "the film was"


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")


def test_text_is_that_of_pefts_model(decoder, tmp_path, capsys):
    base = transformers.AutoModelForCausalLM.from_pretrained(decoder)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear")
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor += 0.5 * torch.randn_like(tensor)
    model.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(decoder)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    options = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0}

    def text(adapted: bool) -> str:
        with torch.no_grad():
            if adapted:
                found = model.generate(input_ids=ids, **options)
            else:
                with model.disable_adapter():
                    found = model.generate(input_ids=ids, **options)
        return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)

    asked = ["generate", "--model", str(decoder), "--prompt", PROMPT, "--max-new-tokens", "9"]
    assert main([*asked, "--adapter", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == text(True).strip()
    assert text(True) != text(False)
    assert main([*asked, "--adapter", str(tmp_path / "nothing")]) == 2
    assert "adapter_config.json does not exist" in capsys.readouterr().err


def test_an_adapter_needs_a_model(tmp_path, capsys):
    assert main(["generate", "--workdir", "w", "--adapter", "a", "--prompt", "x"]) == 2
    assert "--adapter goes over a pretrained model" in capsys.readouterr().err
