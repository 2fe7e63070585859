"""Prompts are read by the attention of the machine; one more token by plain products."""

import re
from functools import partial

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu import splash_attention

from ftjax.commands.entry import main
from ftjax.formats.folder import load_tokenizer
from ftjax.generation import beam, decode
from ftjax.generation.load import open_model
from ftjax.generation.settings import Settings
from ftjax.generation.text import Generator
from ftjax.parallel.mesh import logical_axes

PROMPTS = ["the film was", "a very good story and"]


def test_on_a_tpu_prompts_go_through_its_kernel(decoder, capsys, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    asked = ["generate", "--model", str(decoder), "--max-new-tokens", "5"]
    asked += [item for prompt in PROMPTS for item in ("--prompt", prompt)]
    assert main([*asked, "--attention", "xla"]) == 0
    wanted, kernels = capsys.readouterr().out, []
    make = splash_attention.make_splash_mha

    def interpreted(*args, **options):
        kernels.append(options)
        return make(*args, **options, interpret=True)

    monkeypatch.setattr(splash_attention, "make_splash_mha", interpreted)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert main(asked) == 0
    assert capsys.readouterr().out == wanted
    assert len(kernels) == 2  # of each layer, in the one program that reads prompts


@pytest.mark.parametrize(
    ("name", "search", "prompt"),
    [
        ("decoder", decode, {"ScaleBias NO_MASK"}),
        ("sequences", decode, {"ScaleBias PADDING"}),
        ("decoder", beam, {"ScaleBias NO_MASK"}),
    ],
)
def test_on_a_gpu_prompts_go_through_cudnn(name, search, prompt, request, one_device, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # cuDNN is not here: JAX asks for its version, and checks the rest as it is.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    folder = request.getfixturevalue(name)
    model, params, _ = open_model(str(folder), one_device, "bfloat16")
    settings = Settings(max_new_tokens=4, end=(3,), num_beams=2 if search is beam else 1)
    batch = Generator(model, params, load_tokenizer(folder), settings).encode(PROMPTS)
    batch["numbers"] = jax.numpy.arange(2)

    def kernels(part, *inputs):
        traced = jax.jit(partial(part, model, settings)).trace(params, *inputs)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        calls = re.findall(r"@__cudnn\$fmha(\w*)Softmax\(.*?mask_type\\22: \\22(\w+)", text)
        return {" ".join(call) for call in calls}

    with logical_axes(one_device):
        assert kernels(search.start, batch) == prompt
        state = jax.eval_shape(partial(search.start, model, settings), params, batch)
        assert not kernels(search.go_on, state, jax.numpy.int32(4))


def test_the_option_is_checked(decoder, capsys, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    asked = ["generate", "--model", str(decoder), "--prompt", "the", "--attention"]
    for name, message in (
        ("splash", "attention=splash runs on TPUs, and this is a CPU: use attention=auto"),
        ("cudn", "model.attention='cudn' is not known (did you mean 'cudnn'?)"),
    ):
        assert main([*asked, name]) == 2
        assert message in capsys.readouterr().err
