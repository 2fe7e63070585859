"""The commands, one file each: its arguments, and one call of the public function it stands for.

Importing them imports nothing heavy, so that help is quick.
"""

from ftjax.commands import (
    cache,
    compare,
    compile,
    config,
    evaluate,
    export,
    generate,
    init,
    list,
    predict,
    train,
)
from ftjax.commands.command import Command

COMMANDS: dict[str, Command] = {
    "train": train.COMMAND,
    "evaluate": evaluate.COMMAND,
    "predict": predict.COMMAND,
    "compare": compare.COMMAND,
    "compile": compile.COMMAND,
    "export": export.COMMAND,
    "generate": generate.COMMAND,
    "config": config.COMMAND,
    "init": init.COMMAND,
    "list": list.COMMAND,
    "cache": cache.COMMAND,
}
