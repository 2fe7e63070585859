"""The console: what is printed, wherever it goes, and the one line on what cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ftjax

HOME = str(Path(ftjax.__file__).parents[1])


def console(*arguments, **settings):
    environment = {**os.environ, "PYTHONPATH": HOME, **settings.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    command = [sys.executable, "-P", "-m", "ftjax", *arguments]
    return subprocess.Popen(command, env=environment, text=True, encoding="utf-8", **pipes)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_it_ends_in_silence_where_it_is_read_no_more(unbuffered):
    process = console("list", "methods", env={"PYTHONUNBUFFERED": unbuffered})
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        process = console("--help", stdout=full, env={"PYTHONUNBUFFERED": ""})
        said = process.communicate()[1]
    assert process.returncode == 2 and said.count("\n") == 1 and "No space left" in said


def test_letters_that_the_terminal_lacks_are_written_as_numbers(tmp_path):
    (tmp_path / "page.yaml").write_text("data: {path: 评论.csv}", encoding="utf-8")
    page = ["config", "--config", str(tmp_path / "page.yaml")]
    process = console(*page, env={"PYTHONIOENCODING": "ascii"})
    out, error = process.communicate()
    assert process.returncode == 0 and "\\u8bc4\\u8bba.csv" in out, error


def test_a_folder_that_is_gone(tmp_path):
    code = f"import os, sys; os.chdir({str(tmp_path)!r}); os.rmdir({str(tmp_path)!r})\n"
    code += "from ftjax.commands.entry import console; sys.exit(console())"
    command = [sys.executable, "-P", "-c", code, "list", "methods"]
    environment = {**os.environ, "PYTHONPATH": HOME}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: the current folder is"), done


def test_its_version_and_an_empty_folder():
    process = console("--version")
    assert process.communicate()[0] == f"ftjax {ftjax.__version__}\n" and process.returncode == 0
    process = console("train", "--task", "classification", "--workdir", "")
    assert "--workdir: is empty: name a folder" in process.communicate()[1]
    assert process.returncode == 2


def test_a_list_that_lacks_a_name_says_no_more():
    process = console("list", "methods", "odd")
    assert "by ftjax train" not in process.communicate()[1] and process.returncode == 2


def test_a_command_imports_no_torch(config_file, tmp_path):
    """Nor what else takes seconds and is not used; a program that imports ftjax may have both."""
    page = ["train", "--config", str(config_file), "--workdir", str(tmp_path / "run")]
    process = console(*page, env={"PYTHONPROFILEIMPORTTIME": "1"})
    modules = {line.rpartition("|")[2].strip() for line in process.communicate()[1].splitlines()}
    assert process.returncode == 0
    assert {"transformers.modeling_rope_utils", "tensorboardX.record_writer"} <= modules
    assert not {"torch.nn", "google.cloud.storage.client"} & modules
    code = "from ftjax.process import transformers as t; print(t().utils.is_torch_available())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"
