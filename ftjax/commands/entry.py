"""The `ftjax` command: its parser, the start of JAX, and how errors end it."""

import os
import select
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from glob import glob
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ftjax import __version__
from ftjax.changes import every_key, refused, spoken
from ftjax.commands import COMMANDS
from ftjax.commands.explain import print_explanations
from ftjax.errors import Stopped, UserError, summary
from ftjax.process import COMMAND, of_ftjax

LEFT = 128 + signal.SIGPIPE
BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")
TPUS, GOOGLE = ("/dev/accel*", "/dev/vfio/[0-9]*"), "0x1ae0"  # where TPUs are; PCI's vendor


def parser() -> ArgumentParser:
    """The parser of all commands."""
    main = ArgumentParser(
        prog="ftjax", description="Fine-tune language models in JAX and compare the methods."
    )
    main.add_argument("--version", action="version", version=f"ftjax {__version__}")
    added = main.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        text = command.help
        words = {"help": text, "description": text, "epilog": spoken(command.keys) or None}
        command.arguments(added.add_parser(name, allow_abbrev=False, **words))
    return main


def console() -> int:
    """The `ftjax` command, whose process this is: prepares it, and runs what its arguments say."""
    for name, value in surroundings().items():
        os.environ.setdefault(name, value)
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return _failed(UserError("the current folder is there no more: change to another"), 2)
    if sys.path[0] in ("", here):  # files there must not stand in for installed packages
        sys.path.append(sys.path.pop(0))
    if isinstance(sys.stdout, TextIOWrapper):  # which may have no letters but English ones
        sys.stdout.reconfigure(errors="backslashreplace")
    _huge_pages(sys.argv[1:])
    try:
        code = main(sys.argv[1:])
    except SystemExit as end:  # of --help, and of arguments that are missing
        code = end.code
    return _printed(code)


def _printed(code: int) -> int:
    """The exit code, once all that was printed is where it goes, or another where it cannot."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the end flushes again
        return LEFT if isinstance(error, BrokenPipeError) else _failed(error, 2)


def main(argv: Sequence[str]) -> int:
    """Runs a command.

    Returns:
        Its exit code: 0; 2 for bad input; 143 where SIGTERM stopped a run, which has saved, 130
        where Ctrl-C did, 141 where what it prints is read no more, as by `head`.
    """
    with _no_late_reads():
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    """The exit code of a command."""
    try:
        if any(item.partition("=")[0] == "--explain" for item in argv):
            return print_explanations(argv)
        arguments, rest = parser().parse_known_args(argv)
        command = COMMANDS[arguments.command]
        _refuse_strange(arguments.command, rest)
        if command.starts_jax:
            start_jax()
        with _quiet_stores(command.keys):
            return command.run(arguments, rest) or 0
    except UserError as error:
        return _failed(_explained(argv[0], error), 2)
    except Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends what is left at once
        print("interrupted", file=sys.stderr)
        _leave(error, 130)
        return 130
    except Exception as error:
        from ftjax.remote import of_store

        if isinstance(error, BrokenPipeError) and _is_left():
            _leave(error, LEFT)
            return LEFT
        if isinstance(error, OSError) and (error.filename or error.errno):
            return _failed(error, 2)  # a disk that is full, a folder that cannot be written
        if of_store(error):
            what = f"an object store failed ({summary(error)}); once it answers, try again"
            return _failed(UserError(what), 2)
        _leave(error, 1, printed=False)
        raise


def _is_left() -> bool:
    """Whether what this process prints is read no more."""
    output = select.poll()
    output.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def surroundings() -> dict[str, str]:
    """What libraries read of the environment when they are imported."""
    said = {COMMAND: "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}  # that there is no torch
    said["TOKENIZERS_PARALLELISM"] = "true"  # which some versions ask for, since forks would hang
    if not sys.stderr.isatty():  # a log: lines alone
        said |= dict.fromkeys(BARS, "1")
    if find_spec("libtpu") and not find_spec("jax_plugins") and not _has_tpu():
        said["JAX_PLATFORMS"] = "cpu"  # libtpu would be asked first, and complain at length
    return said


@contextmanager
def _no_late_reads() -> Iterator[None]:
    """Keeps reads that end after another of the same checkpoint has failed from printing tracebacks
    by tens: the loop that waited for all of them is closed."""
    show = sys.unraisablehook

    def shown(late: Any) -> None:
        if not (late.object is None and str(late.exc_value) == "Event loop is closed"):
            show(late)

    sys.unraisablehook = shown
    try:
        yield
    finally:
        sys.unraisablehook = show


def _quiet_stores(keys: Sequence[str]) -> AbstractContextManager[None]:
    """Where a command has a configuration, which may name object stores."""
    if not keys:
        return nullcontext()
    from ftjax.remote import raised_once

    return raised_once()


def _has_accelerator() -> bool:
    """Whether the command may run on anything but processors."""
    there = _has_tpu() or bool(glob("/dev/nvidia[0-9]*"))
    return there and os.environ.get("JAX_PLATFORMS") != "cpu"


def _has_tpu() -> bool:
    """Whether there may be one: a device, or anything of its maker's on the bus."""
    makers = (Path(file).read_text().strip() for file in glob("/sys/bus/pci/devices/*/vendor"))
    return any(map(glob, TPUS)) or GOOGLE in makers


def _refuse_strange(command: str, rest: Sequence[str]) -> None:
    """Raises UserError for arguments that a command does not take, with what it does."""
    keys = COMMANDS[command].keys
    for number, item in enumerate(rest):
        if keys and item.startswith("--config.") and "=" in item:
            continue
        name, _, value = item.lstrip("-").removeprefix("config.").partition("=")
        after = value or next(iter(rest[number + 1 :]), "VALUE")
        taken = f"; {spoken(keys)}{_meant(name, after, keys)}" if keys else ""
        raise UserError(f"{item!r} is not understood{taken}; see ftjax {command} --help")


def _meant(name: str, value: str, keys: Sequence[str]) -> str:
    """ ", as KEY" where an argument is called as a key that can be given is, or nearly."""
    every = [key for key in every_key() if key.startswith(tuple(keys))]
    ends = [key for key in every if key.rpartition(".")[2] == name.replace("-", "_")]
    key = next(iter([name] * (name in every) or ends or get_close_matches(name, every, 1, 0.8)), "")
    return f", as --config.{key}={value}" if key else ""


def _explained(command: str, error: UserError) -> UserError:
    """An error, with what it says of keys that the command does not take."""
    if command not in COMMANDS:
        return error
    subject = COMMANDS[command]
    listed = ArgumentParser(add_help=False)
    subject.arguments(listed)
    if not subject.keys:  # one that takes none, and has said all
        return error
    strange = refused(str(error), subject.keys, [*listed._option_string_actions])
    if not strange:
        return error
    keys = f"{' and '.join(strange)} {'is' if len(strange) == 1 else 'are'}"
    return UserError(f"{error} ({keys} set where a run is begun, by ftjax train, not here)")


def _failed(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    _leave(error, code)
    return code


def _leave(error: BaseException, code: int, printed: bool = True) -> None:
    """Ends at once where this is one process of several, which would wait for it."""
    if "jax" in sys.modules:
        from ftjax.parallel.hosts import leave

        leave(error, code, printed)


def _huge_pages(argv: Sequence[str]) -> None:
    """Starts again with glibc asking for huge pages, where the system gives them on request.

    A step's temporaries are hundreds of megabytes of fresh memory; with 4 KiB pages a CPU spends
    a tenth of the step on page faults. glibc reads the setting only at start.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    command = COMMANDS.get(argv[0]) if argv else None
    computes = command is not None and command.starts_jax and not {"-h", "--help"} & {*argv}
    if not computes or "GLIBC_TUNABLES" in os.environ or not setting.exists() or _has_accelerator():
        return
    if "[madvise]" in setting.read_text():
        command, environment = of_ftjax(argv)
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execve(command[0], command, environment)


def start_jax() -> None:
    """Joins the other hosts, if any, and keeps compiled programs between runs."""
    import jax

    from ftjax.parallel.hosts import join
    from ftjax.remote import cache_folder

    join()
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
