"""A work folder is opened by all hosts of a run at once, and never where other files are."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.training.run import open_workdir, read_workdir, write_labels

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
