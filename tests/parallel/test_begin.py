"""Runs of two processes that begin with another run's model."""

from ftjax.config import check, load_config
from ftjax.runs.start import begin
from tests.conftest import here
from tests.parallel.processes import ended, start

SHORT = ["--config.train.steps=2", "--config.train.eval_every=2", "--config.data.batching=pad"]
SHARDED = ["--config.mesh.data=1", "--config.mesh.fsdp=2"]


def test_the_first_writes_it_for_all_or_all_say_why_not(config_file, tmp_path):
    """The tensors, of which each has a half, are as one process writes them."""
    earlier = ["--config.method.name=lora", *SHARDED, "--config.mesh.data=-1"]
    named = ["--config", config_file, "--workdir"]
    here("train", *named, tmp_path / "earlier", *SHORT, *earlier, devices=2)
    overrides = [*SHORT, *SHARDED, f"--config.model.from_run={tmp_path / 'earlier'}"]
    command = ["train", "--config", config_file, "--workdir", tmp_path / "two", *overrides]
    for said in ended(start(command, 2, 2, {0: "tests.parallel.full:main"}), {2}):
        assert "No space left on device" in said and "Traceback" not in said
    assert not (tmp_path / "two").exists()
    ended(start(command, 2, 2, dict.fromkeys(range(2), "tests.parallel.beginning:main")))
    begin(check(load_config(str(config_file), overrides)), tmp_path / "one")
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name / "start").iterdir()}
        for name in ("one", "two")
    )
    assert one == two and "model.safetensors" in one
