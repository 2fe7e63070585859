"""`ftjax cache`: what is kept on disk since it can be made again."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ftjax.commands.command import Command
from ftjax.errors import UserError, nearest


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument("folders", nargs="*", help="that are cleared (default: all)")


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax import cache
    from ftjax.remote import cache_folder

    folders = arguments.folders or list(cache.FOLDERS)
    for name in folders:
        if name not in cache.FOLDERS:
            raise UserError(f"cache: no folder {name!r}{nearest(name, cache.FOLDERS)}")
    sizes = cache.sizes()
    if arguments.what == "clear":
        cache.clear(folders)
    print(cache_folder())
    for name in folders:
        files, held = sizes[name]
        done = "removed: " if arguments.what == "clear" else ""
        print(f"  {name:<10}{done}{files:>7,} files {held / 1e6:>12,.1f} MB  {cache.FOLDERS[name]}")
    if arguments.what == "list":
        limited = ", ".join(cache.KEPT)
        print(f"  {limited} may hold {cache.limit() / 1e9:,.1f} GB ($FTJAX_CACHE_LIMIT)")


COMMAND = Command("list what is kept on disk to save time, or clear it", add_arguments, run)
