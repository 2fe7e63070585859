"""Pages of every key, every command and every name of the Python interface."""

import inspect
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator
from typing import Any

import ftjax
from ftjax.commands import COMMANDS
from ftjax.commands.entry import parser
from ftjax.config.sections import SECTIONS
from scripts.docs.markdown import entries, escaped, fenced, options_table, prose, sections, table


def keys_page() -> str:
    """Every key but those of methods and tasks, which have pages of their own."""
    lines = [
        "# Configuration keys",
        "",
        "Every key can be given as `--config.KEY=VALUE` on a command line, as a keyword in Python",
        '(`**{"KEY": value}`), and in a page of configuration. A key that there is not is an error',
        "that names the nearest; a value is read as the table says.",
        "",
        table(
            ("key", "default", "may be", "meaning"),
            [
                ("`seed`", "`0`", "a whole number", "of all that is drawn"),
                ("`method.*`", "", "", "the options of the method: [methods](../methods/index.md)"),
                ("`task.*`", "", "", "the options of the task: [tasks](../tasks/index.md)"),
                ("`data.columns.*`", "", "", "what the files call the fields of a task's rows"),
            ],
        ),
    ]
    for section, cls in SECTIONS.items():
        lines += [f"## {section}", "", prose(sections(cls)[""])]
        lines.append(options_table(cls, f"{section}."))
    return "\n".join(lines)


def commands_page() -> str:
    """Every command with its arguments, as its parser has them."""
    found = next(a for a in parser()._actions if a.dest == "command").choices
    lines = [
        "# Commands",
        "",
        "`python -m ftjax` is the same as `ftjax`. Bad input gets one message and exit code 2; a",
        "run that SIGTERM stopped has saved and exits with 143, one that Ctrl-C stopped with 130.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines += [f"## ftjax {name}", "", f"{escaped(command.help.capitalize())}.", ""]
        lines += [table(("argument", "", ""), arguments(found[name]))]
        if found[name].epilog:
            lines += [f"{escaped(found[name].epilog.capitalize())}.", ""]
    return "\n".join(lines)


def arguments(of: ArgumentParser) -> Iterator[tuple[str, str, str]]:
    """(name, whether it is needed, what it is) of a command's arguments."""
    for action in of._actions:
        if action.dest == "help" or action.help == SUPPRESS:
            continue
        name = action.option_strings[0] if action.option_strings else action.dest
        choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
        needed = "needed" if action.required else ""
        text = escaped(action.help or "") or choices
        yield f"`{name}`", needed, f"{text}: {choices}" if choices and action.help else text


def python_page() -> str:
    """Every name of the package's interface."""
    names = [name for name in [*ftjax.__all__, "config"] if name != "__version__"]
    functions = [name for name in names if not inspect.isclass(getattr(ftjax, name))]
    classes = [name for name in names if inspect.isclass(getattr(ftjax, name))]
    lines = [
        "# Python interface",
        "",
        "Every command is a function of the same name that returns what the command prints. Paths",
        "are texts or `os.PathLike`; keys are given by dotted names, as",
        '`**{"model.dtype": "bfloat16"}`. Importing `ftjax` imports nothing heavy.',
        "",
    ]
    for name in sorted(functions):
        if callable(getattr(ftjax, name)):
            lines += described(f"ftjax.{name}", getattr(ftjax, name), "##")
    for name in classes:
        cls = getattr(ftjax, name)
        lines += described(f"ftjax.{name}", cls, "##", signed=False)
        for own, member in vars(cls).items():
            if not own.startswith("_") and (callable(member) or isinstance(member, property)):
                lines += described(f"{name}.{own}", member, "###")
    return "\n".join(lines)


def described(name: str, entry: Any, level: str, signed: bool = True) -> list[str]:
    """Heading, signature and docstring of a function, class or property."""
    function = entry.fget if isinstance(entry, property) else entry
    lines = [f"{level} {name}", ""]
    if signed and not isinstance(entry, property) and not inspect.isclass(entry):
        lines.append(fenced(f"{name}{signature(function)}", "python"))
    said = sections(function)
    lines.append(prose(said.pop("")))
    for heading, text in said.items():
        rows = [(f"`{one}`", escaped(meaning)) for one, meaning in entries(text).items() if meaning]
        if heading in ("Args", "Attributes", "Raises") and rows:
            lines.append(table((heading.lower(), ""), rows))
        else:
            lines += [f"**{heading}**: {prose(text)}"]
    return lines


def signature(function: Any) -> str:
    """Parameters, one a line where there are many, without the types' modules."""
    given = inspect.signature(function)
    parts = [named(each) for each in given.parameters.values() if each.name != "self"]
    kinds = [each.kind for each in given.parameters.values() if each.name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    line = f"({', '.join(parts)})"
    return line if len(line) < 80 else "(\n    " + ",\n    ".join(parts) + ",\n)"


def named(parameter: inspect.Parameter) -> str:
    """A parameter with its default."""
    star = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    name = star.get(parameter.kind, "") + parameter.name
    default = parameter.default
    return name if default is inspect.Parameter.empty else f"{name}={default!r}"
