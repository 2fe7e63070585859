"""Configurations as YAML 1.2: `1e-3` is a number, `no` is a text, and a key is said once."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from ftjax.config.keys import known_options
from ftjax.errors import UserError

PLAIN = {  # tag → texts without quotes that are not strings, and what they begin with
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
        list("-+0123456789."),
    ),
    "merge": (r"<<", ["<"]),
}
MERGE = "tag:yaml.org,2002:merge"
MENDS = {  # what yaml says → what to do about it
    r"'\t'": "indent and separate by spaces, not tabs",
    "unhashable": "a key is a text",
    "escape": "write it in single quotes, in which a backslash is one",
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: Mapping = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Raises ConstructorError for a key that is said twice, of which one would be lost."""
        said = []
        for key in [key for key, _ in node.value if key.tag != MERGE]:
            name = self.construct_object(key, deep=True)
            if name in said:
                what = f"{name!r} is said twice"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            said.append(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: Mapping = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_form, _first) in PLAIN.items():
    for _each in (_Loader, _Dumper):
        _pattern = re.compile(f"^(?:{_form})$")
        _each.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
# At once, with all that is within: what is within itself is refused, with its line.
_Loader.add_constructor("tag:yaml.org,2002:map", lambda its, x: its.construct_mapping(x, True))
_Loader.add_constructor("tag:yaml.org,2002:seq", lambda its, x: its.construct_sequence(x, True))
_Dumper.add_representer(
    tuple, lambda dumper, x: dumper.represent_sequence("tag:yaml.org,2002:seq", x, flow_style=True)
)


def to_yaml(config: ConfigDict) -> str:
    """All keys, nested as they are; what `read_yaml` reads."""
    values, tree = config.to_dict(), {}
    for key in [*known_options(config), "model.new"]:
        value, node, (*parents, last) = values, tree, key.split(".")
        for name in parents:
            value, node = value[name], node.setdefault(name, {})
        node[last] = value[last]
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def read_yaml(file: Path) -> Mapping[str, Any]:
    """What a page of YAML says, by section.

    Raises:
        UserError: it is no YAML, or no mapping; the line is named.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        place = f"{file}, line {mark.line + 1}" if mark else file
        mend = "".join(f": {mend}" for sign, mend in MENDS.items() if sign in problem)
        raise UserError(f"{place}: {problem}{mend}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{file} is no YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise UserError(f"{file}: a page of YAML is a mapping of sections, as model: {{path: ...}}")
    return tree
