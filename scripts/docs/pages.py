"""Every page that is not written by hand."""

from collections.abc import Iterator

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
