"""The pages in configs/: each is a sound configuration, for every method that it is asked for."""

from pathlib import Path

import pytest

from ftjax import methods, tasks
from ftjax.config import check, load_config

PAGES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_sound_and_fits_one_screen(page):
    only = page.stem.startswith("prompting")  # nothing is trained
    for method in ("",) if only else ("", ":full", ":lora"):
        config = check(load_config(f"{page}{method}"))
        assert not method or config.method.name == method[1:]
        tasks.create(config.task)
        methods.create(config.method)
    assert len(page.read_text().splitlines()) <= 60


def test_every_task_has_a_page():
    assert {load_config(str(page)).task.name for page in PAGES} == set(tasks.TASKS)
