"""For mkdocs: adds the pages that are made of registries, docstrings and measured figures."""

from typing import Any

from mkdocs.structure.files import File, Files

from ftjax import tasks
from ftjax.models import FAMILIES
from scripts.docs import figures, method_pages
from scripts.docs.pages import generated

PICTURES = {  # in the site → where the experiment that drew it keeps it
    "assets/eight_methods.png": "experiments/demo/accuracy.png",
    "assets/sst2.png": "experiments/compare_sst2/accuracy.png",
}


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
    for path, source in PICTURES.items():
        files.append(File.generated(config, path, abs_src_path=str(figures.ROOT / source)))
    return files
