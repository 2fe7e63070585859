"""`ftjax generate --workdir` continues by the best model of a run."""

import jax
import jax.numpy as jnp

from ftjax.cli import main
from ftjax.config import default_config
from ftjax.formats.folder import fingerprint, load_tokenizer
from ftjax.generation.settings import Settings
from ftjax.generation.text import Generator
from ftjax.partition import merge
from ftjax.training.checkpoints import Checkpoints
from ftjax.training.run import open_workdir, place_model, write_labels
from ftjax.training.step import State
from tests.conftest import perturbed


def test_tokens_are_the_tuned_models(decoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    config = default_config("lora", "causal_lm")
    config.model.path = str(decoder)
    config.data.max_length = 32
    work = tmp_path / "work"
    open_workdir(work, config)
    write_labels(work, ())
    run = place_model(config, ())
    moved = perturbed(merge(run.trainable, run.frozen), run.tuned)
    trainable, _ = run.tuned.partition.split(moved)
    state = State(jnp.asarray(7), trainable, {"count": jnp.zeros(())}, jax.random.key(0))
    meta = {"base": fingerprint(decoder), "progress": {"best_step": 7}}
    checkpoints = Checkpoints(work / "checkpoints")
    checkpoints.save(state, meta, 7)
    checkpoints.wait()
    checkpoints.close()
    generator = Generator(
        run.tuned, moved, load_tokenizer(decoder), Settings(max_new_tokens=9, end=(3,))
    )
    ((wanted,),) = generator(["the film was"])
    prompt = ["--prompt", "the film was", "--max-new-tokens", "9"]
    assert main(["generate", "--workdir", str(work), *prompt]) == 0
    assert capsys.readouterr().out == f"{wanted}\n"
    assert main(["generate", "--model", str(decoder), *prompt]) == 0
    assert capsys.readouterr().out != f"{wanted}\n"  # the base model says something else
