"""A work folder is opened by all hosts of a run at once, and never where other files are."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest

from ftjax.config import default_config
from ftjax.config.saved import to_json
from ftjax.errors import UserError
from ftjax.remote import located
from ftjax.workdir.folder import (
    check_workdir,
    finished,
    open_workdir,
    read_labels,
    read_workdir,
    require_other,
    write_labels,
)
from tests.conftest import ftjax

HOSTS = 8


def test_hosts_open_it_at_once(tmp_path):
    config, together = default_config("lora", "classification"), Barrier(HOSTS)

    def host(workdir):
        together.wait()
        open_workdir(workdir, config)
        write_labels(workdir, ("bad", "good"))

    with ThreadPoolExecutor(HOSTS) as hosts:
        for turn in range(50):
            list(hosts.map(host, [tmp_path / str(turn)] * HOSTS))
    assert {path.name for path in tmp_path.glob("*/.*")} == set()


def test_what_a_killed_write_left_is_no_other_file(tmp_path):
    (tmp_path / ".config.json.0f").write_text("{")
    open_workdir(tmp_path, default_config("lora", "classification"))
    assert read_workdir(tmp_path).method.name == "lora"


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files and no config\.json"):
        open_workdir(tmp_path, default_config("lora", "classification"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_damaged_is_named_with_the_mend(tmp_path):
    """As a power cut leaves files: empty, or cut short."""
    config = default_config("lora", "classification")
    open_workdir(tmp_path, config)
    write_labels(tmp_path, ("bad", "good"))
    (tmp_path / "result.json").write_text("")
    with pytest.raises(UserError, match=r"result\.json is not valid JSON: .*; remove it, and the"):
        finished(tmp_path, config)
    (tmp_path / "labels.json").write_text('["bad", "go')
    with pytest.raises(UserError, match=r"labels\.json is not valid JSON: .* in order"):
        read_labels(tmp_path)
    (tmp_path / "config.json").write_text("")
    for read in (read_workdir, partial(check_workdir, config=config)):
        with pytest.raises(UserError, match=r"config\.json is not valid JSON: .* under \"config\""):
            read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="that of a model, not of a run"):
        read_workdir(tmp_path)


def test_a_folder_in_which_nothing_was_trained_is_free(config_file, tmp_path):
    """A refused run leaves no more than that: the corrected command may have the folder."""
    workdir = tmp_path / "run"
    command = ["train", "--config", f"{config_file}:lora", "--workdir", workdir]
    short = ["--config.train.steps=1", "--config.optimizer.learning_rate=2e-3"]
    refused = ftjax(*command, "--config.method.targets=('nowhere',)", expect=2).stderr
    assert "nowhere" in refused
    config = default_config("lora", "classification")
    open_workdir(workdir, config)  # as of a run that was killed before its first checkpoint
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    ftjax(*command, *short)
    assert read_workdir(workdir).optimizer.learning_rate == 2e-3
    for other in (default_config("lora", "classification"), default_config("full")):
        with pytest.raises(UserError, match="holds a run of another configuration"):
            open_workdir(workdir, other)
    (workdir / "result.json").unlink()  # the checkpoints are what was trained
    with pytest.raises(UserError, match="holds a run of another configuration"):
        check_workdir(workdir, config)


def test_how_files_are_read_is_no_other_configuration(tmp_path):
    """What they hold is compared: a run may go on with the same rows in another form."""
    config = default_config("lora", "classification")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "config.json").write_text(to_json(config))
    config.data.source, config.data.delimiter = "csv", ";"
    check_workdir(tmp_path, config)
    config.data.max_length = 64
    with pytest.raises(UserError, match="data.max_length: 128 there, 64 now"):
        check_workdir(tmp_path, config)


@pytest.mark.parametrize(
    "name", ["config.json", "result_4.json", "metrics.jsonl", "predictions_test.jsonl"]
)
def test_nothing_is_written_over_what_it_is_made_of(tmp_path, name):
    run, rows, other = tmp_path / "run", tmp_path / "rows.jsonl", tmp_path / "run" / "mine.jsonl"
    run.mkdir()
    for file in (rows, other):
        file.write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to(rows)
    for output in (rows, tmp_path / "link.jsonl"):
        with pytest.raises(UserError, match="is the file that is read"):
            require_other(output, run, rows)
    with pytest.raises(UserError, match=f"run/{name} is a file of the run"):
        require_other(run / name, run, rows)
    for free in (other, tmp_path / name, run / "deeper" / name):
        require_other(free, run, rows)


def test_what_is_no_path_is_refused():
    with pytest.raises(UserError, match="is no path"):
        located("a\0b")
