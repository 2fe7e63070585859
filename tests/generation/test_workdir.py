"""`ftjax generate --workdir` continues by the best model of a run."""

import json

import jax
import jax.numpy as jnp
import pytest

from ftjax.commands.entry import main
from ftjax.config import default_config
from ftjax.config.saved import to_json
from ftjax.formats.folder import fingerprint, load_tokenizer
from ftjax.generation.settings import Settings
from ftjax.generation.text import Generator
from ftjax.partition import merge
from ftjax.setup.model import place_model
from ftjax.training.step import State
from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.folder import open_workdir, write_labels
from tests.conftest import perturbed

pytestmark = pytest.mark.usefixtures("first_device")


def finished(config, work):
    """A work folder of a run whose adapter has moved; the run, and all parameters."""
    open_workdir(work, config)
    write_labels(work, ())
    run = place_model(config, ())
    moved = perturbed(merge(run.trainable, run.frozen), run.tuned)
    trainable, _ = run.tuned.partition.split(moved)
    state = State(jnp.asarray(7), trainable, {"count": jnp.zeros(())}, jax.random.key(0))
    progress = {"best_step": 7}
    meta = {"base": fingerprint(run.folder), "progress": progress, "config": to_json(config)}
    checkpoints = Checkpoints(work / "checkpoints")
    checkpoints.save(state, meta, 7)
    checkpoints.wait()
    checkpoints.close()
    return run, moved


def configured(decoder, task):
    config = default_config("lora", task)
    config.model.path = str(decoder)
    config.data.max_length = 32
    return config


def test_chats_are_written_as_in_training(decoder, tmp_path, capsys, monkeypatch):
    """By the task's template and settings, not the tokenizer's and the usual ones."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    config, work = configured(decoder, "instruction"), tmp_path / "work"
    template = "{% for m in messages %}good {{ m['content'] }} music {% endfor %}"
    config.task.update({"template": template, "max_new_tokens": 5, "num_beams": 2})
    config.data.prepare = ({"step": "repair", "columns": ("messages",)}, "clean_labels")
    run, moved = finished(config, work)
    asked = Settings(max_new_tokens=5, num_beams=2, end=(3,))
    generator = Generator(run.tuned, moved, load_tokenizer(decoder), asked)
    tokenizer = generator.encode.tokenizer
    tokenizer.chat_template = template
    read = tokenizer("good the film music ", add_special_tokens=False)["input_ids"]
    chat = [{"role": "user", "content": "the film"}]
    ids = generator.encode([chat])["input_ids"][0]
    assert ids[ids > 0].tolist() == read
    ((wanted,),) = generator([chat])
    common = ["generate", "--workdir", str(work), "--chat", "--prompt"]
    assert main([*common, "the film"]) == 0
    assert capsys.readouterr().out == f"{wanted}\n"
    # What was rewritten in training is so here: \ufb01 is two letters, and \a nothing.
    assert main([*common, "the \ufb01lm"]) == 0
    assert capsys.readouterr().out == f"{wanted}\n"
    ((raw,),) = generator([[{"role": "user", "content": "the \ufb01lm"}]])
    assert main([*common, "the \ufb01lm", "--config.data.prepare=()"]) == 0
    assert capsys.readouterr().out == f"{raw}\n" != f"{wanted}\n"
    assert main([*common, "\a"]) == 2
    said = capsys.readouterr().err
    assert "prompt 1: data.prepare: repair: nothing is left" in said


def test_tokens_are_the_tuned_models(decoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    work = tmp_path / "work"
    run, moved = finished(configured(decoder, "causal_lm"), work)
    generator = Generator(
        run.tuned, moved, load_tokenizer(decoder), Settings(max_new_tokens=9, end=(3,))
    )
    ((wanted,),) = generator(["the film was"])
    prompt = ["--prompt", "the film was", "--max-new-tokens", "9"]
    assert main(["generate", "--workdir", str(work), *prompt]) == 0
    assert capsys.readouterr().out == f"{wanted}\n"
    # Attention by a TPU's kernel is of the machine that trained, not of the model.
    saved = json.loads((work / "config.json").read_text())
    saved["model"]["attention"] = "splash"
    (work / "config.json").write_text(json.dumps(saved))
    assert main(["generate", "--workdir", str(work), *prompt]) == 0
    assert capsys.readouterr().out == f"{wanted}\n"
    assert main(["generate", "--model", str(decoder), *prompt]) == 0
    assert capsys.readouterr().out != f"{wanted}\n"  # the base model says something else
