"""For mkdocs: adds the pages that are made of registries, docstrings and measured figures."""

from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File, Files

from ftjax import tasks
from ftjax.models import FAMILIES
from scripts.docs import interface_pages, method_pages, registry_pages


def generated() -> Iterator[tuple[str, str]]:
    """Path → Markdown of every page that is not written by hand."""
    yield from method_pages.pages().items()
    yield from registry_pages.task_pages().items()
    yield from registry_pages.family_pages().items()
    yield "reference/preparation.md", registry_pages.preparation_page()
    yield "reference/regularization.md", registry_pages.regularizers_page()
    yield "reference/keys.md", interface_pages.keys_page()
    yield "reference/commands.md", interface_pages.commands_page()
    yield "reference/python.md", interface_pages.python_page()


def on_config(config: Any) -> Any:
    """Lists of the navigation that are of registries."""
    groups = method_pages.grouped().items()
    lists = {
        "methods": [
            "methods/index.md",
            *({heading: [f"methods/{name}.md" for name in names]} for heading, names in groups),
        ],
        "tasks": ["tasks/index.md", *(f"tasks/{name}.md" for name in tasks.TASKS)],
        "models": ["models/index.md", *(f"models/{name}.md" for name in FAMILIES)],
    }
    for entry in config["nav"]:
        for heading, inside in entry.items():
            if isinstance(inside, str) and inside in lists:
                entry[heading] = lists[inside]
    return config


def on_files(files: Files, config: Any) -> Files:
    for path, text in generated():
        files.append(File.generated(config, path, content=text))
    return files
