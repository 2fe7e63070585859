"""The `ftjax` command. JAX is imported only by the commands that need it."""

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ftjax.errors import Stopped, UserError, summary

CHOICES = {  # how `generate` chooses tokens: option → (type, help)
    "max_new_tokens": (int, "at most so many (default 128)"),
    "min_new_tokens": (int, "at least so many"),
    "temperature": (float, "0 for the most probable token, otherwise tokens are sampled"),
    "top_k": (int, "sample among so many of the most probable"),
    "top_p": (float, "sample among the fewest whose probabilities reach it"),
    "min_p": (float, "sample among those with this share of the highest probability"),
    "repetition_penalty": (float, "above 1 makes what was there less likely"),
    "no_repeat_ngram_size": (int, "no run of so many tokens comes twice"),
    "num_beams": (int, "hypotheses of beam search"),
    "length_penalty": (float, "above 0 favours longer beams"),
    "early_stopping": (lambda text: {"true": True, "false": False}.get(text, text), "of beams"),
    "num_return_sequences": (int, "texts a prompt"),
    "seed": (int, "of sampling (default 0)"),
}
AHEAD = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
NOTHING_FITS = ("", "nothing that was tried fits: more chips, or a method that trains less")
LISTS = ("methods", "models", "tasks", "optimizers", "regularizers", "preparation")
OVERRIDES = "any configuration key can be given as --config.KEY=VALUE"


def _workdir(text: str) -> Path:
    from ftjax.remote import located

    try:
        return located(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _bytes(text: str) -> int:
    """A size such as 500MB, in bytes."""
    matched = re.fullmatch(r"(\d+)(B|KB|MB|GB)", text.strip().upper())
    if not matched or not int(matched[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return int(matched[1]) * 1000 ** ("B", "KB", "MB", "GB").index(matched[2])


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="ftjax", description="Fine-tune language models in JAX and compare the methods."
    )
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, workdir: bool = True, overrides: bool = True) -> Any:
        made = commands.add_parser(
            name, help=text, description=text, epilog=OVERRIDES if overrides else None
        )
        if workdir:
            made.add_argument(
                "--workdir", type=_workdir, required=True, help="the work folder, also gs://..."
            )
        return made

    train = command("train", "train, or go on where an earlier run in the folder stopped")
    train.add_argument("--config", required=True, help="FILE[:ARG], a file with get_config()")
    train.add_argument(
        "--extend",
        action="store_true",
        help="go on to more train.epochs or train.steps than the folder's run was begun with",
    )
    evaluate = command("evaluate", "score the best checkpoint of a work folder on a split")
    evaluate.add_argument("--split", default="test", help="train, validation or test")
    predict = command("predict", "label the rows of a file with the best checkpoint")
    predict.add_argument("--input", type=Path, required=True, help="a .jsonl, .csv or .parquet")
    predict.add_argument("--output", type=Path, required=True, help="the .jsonl to write")
    compare = command("compare", "train by several methods and report")
    compare.add_argument("--config", required=True, help="FILE, a file with get_config([method])")
    compare.add_argument("--methods", default="", help="names, with commas between (the file's)")
    compare.add_argument("--seeds", type=int, default=1, help="runs a method (default 1)")
    compare.add_argument("--jobs", type=int, default=1, help="runs at once (default 1)")
    ahead = command(
        "compile", "compile for TPUs that are not there, and say what a step takes", workdir=False
    )
    ahead.add_argument("--config", required=True, help="FILE[:ARG], a file with get_config()")
    ahead.add_argument("--topology", required=True, help="such as v5e:8x8")
    ahead.add_argument("--slices", type=int, default=1, help="pods beside each other (default 1)")
    ahead.add_argument(
        "--quick", action="store_true", help="with less effort: nearly the same figures, sooner"
    )
    ahead.add_argument("--output", type=Path, help="a .json to write")
    export = command("export", "write the best checkpoint in another format")
    export.add_argument("--format", required=True, choices=("hf", "peft", "adapterhub"))
    export.add_argument("--output", type=Path, required=True, help="a new folder")
    floats = ("float32", "bfloat16", "float16")
    export.add_argument("--dtype", choices=floats, help="of --format hf (default: the base's)")
    size = "largest size of a file of --format hf, such as 500MB (default 5GB)"
    export.add_argument("--max-shard-size", type=_bytes, default="5GB", help=size)
    generate = command("generate", "continue prompts, or chat", workdir=False)
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=_workdir, help="a work folder of a language model")
    source.add_argument("--model", help="a folder, a .gguf file, a nickname or a hub id")
    generate.add_argument("--adapter", type=Path, help="a PEFT folder, over --model")
    asked = generate.add_mutually_exclusive_group()
    prompt = "a text to go on from, or to read, with nothing put before it; may be repeated"
    asked.add_argument("--prompt", action="append", help=prompt)
    asked.add_argument("--input", type=Path, help="a .jsonl with prompt, or messages for --chat")
    generate.add_argument("--output", type=Path, help="the .jsonl to write for --input")
    generate.add_argument("--chat", action="store_true", help="by the model's chat template")
    generate.add_argument("--stop", action="append", default=[], help="a text that ends a text")
    generate.add_argument("--batch-size", type=int, default=8, help="of --input (default 8)")
    generate.add_argument("--dtype", choices=("float32", "bfloat16"), help="of computation")
    kernels = "auto (default, by what it runs on), xla, cudnn, gpu or splash"
    generate.add_argument("--attention", help=kernels)
    generate.add_argument("--tensor", type=int, help="devices that share each layer")
    for name, (kind, text) in CHOICES.items():
        generate.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    for reader in (evaluate, predict, export, generate):
        reader.add_argument("--step", type=int, help="of the checkpoint (default: the best)")
    listing = command("list", "say what there is", workdir=False, overrides=False)
    listing.add_argument("what", choices=LISTS)
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        Its exit code: 0; 2 for bad input; 143 where SIGTERM stopped a run, which has saved, 130
        where Ctrl-C did.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments, rest = parser().parse_known_args(argv)
    strange = [item for item in rest if not item.startswith("--config.") or "=" not in item]
    try:
        if strange or (rest and arguments.command == "list"):
            raise UserError(f"{(strange or rest)[0]!r} is not understood; {OVERRIDES}")
        if arguments.command in ("train", "evaluate", "predict", "export", "generate"):
            _huge_pages(argv)
            _start_jax()
        return COMMANDS[arguments.command](arguments, rest) or 0
    except UserError as error:
        return _failed(error, 2)
    except Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends what is left at once
        print("interrupted", file=sys.stderr)
        _leave(error, 130)
        return 130
    except Exception as error:
        from ftjax.remote import of_store

        if isinstance(error, OSError) and (error.filename or error.errno):
            return _failed(error, 2)  # a disk that is full, a folder that cannot be written
        if of_store(error):
            what = f"an object store failed ({summary(error)}); once it answers, try again"
            return _failed(UserError(what), 2)
        _leave(error, 1, printed=False)
        raise


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
    if "GLIBC_TUNABLES" in os.environ or not setting.exists():
        return
    if "[madvise]" in setting.read_text():
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, "-m", "ftjax", *argv], environment)


def _start_jax() -> None:
    """Joins the other hosts, if any, and keeps compiled programs between runs."""
    import jax

    from ftjax.parallel.hosts import join
    from ftjax.remote import cache_folder

    join()
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _train(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from ftjax.config import check, load_config
    from ftjax.parallel.agreement import first
    from ftjax.workdir.folder import finished

    config = check(load_config(arguments.config, rest))
    result = first(partial(finished, arguments.workdir, config, arguments.extend))
    if result is not None:
        print(f"{arguments.workdir} is finished already")
    elif config.method.name == "prompting":
        from ftjax.training.zero_shot import choose_template

        result = choose_template(config, arguments.workdir)
    else:
        from ftjax.training.train import train

        result = train(config, arguments.workdir, arguments.extend)
    _print_scores(result["metrics"])
    print(f"result: {arguments.workdir / 'result.json'}")


def _compile(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    # What libtpu asks of a machine with TPUs is told it, lest it wait for them.
    for key, value in AHEAD.items():
        os.environ.setdefault(key, value)
    from ftjax.config import check, load_config
    from ftjax.training.forecast import forecast, lines, mended
    from ftjax.workdir.records import write_json

    if arguments.slices < 1:
        raise UserError(f"--slices {arguments.slices} must be positive")
    if arguments.quick:
        import jax

        jax.config.update("jax_optimization_level", "O1")
    config = check(load_config(arguments.config, rest))
    found = forecast(config, arguments.topology, arguments.slices)
    print("\n".join(lines(found)), flush=True)
    if not found["fits"]:
        mend = mended(config, arguments.topology, arguments.slices, print)
        print("\n".join(["", f"fits with {mend[0]}", *lines(mend[1])] if mend else NOTHING_FITS))
        found["mend"] = mend and {"overrides": mend[0], **mend[1]}
    if arguments.output:
        write_json(arguments.output, found)
        print(f"forecast: {arguments.output}")


def _print_scores(scores: dict[str, dict[str, Any]]) -> None:
    for split, metrics in scores.items():
        numbers = [f"{k} {v:.4f}" for k, v in metrics.items() if isinstance(v, float)]
        print(f"{split}: {', '.join(numbers)} ({metrics['examples']:,} examples)")


def _evaluate(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from ftjax import tasks
    from ftjax.config import parse_override
    from ftjax.data.sources import load
    from ftjax.remote import located
    from ftjax.training.predictor import open_predictor
    from ftjax.training.reading import PLACE, ROWS, read_config
    from ftjax.training.splits import read_splits
    from ftjax.workdir.records import write_json

    config = read_config(arguments.workdir, rest, (*PLACE, *ROWS))
    task = tasks.create(config.task)
    changes = dict(parse_override(item) for item in rest)
    config.data.update({"streaming": False, "mixture": changes.get("data.mixture", ())})
    if "data.path" in changes and located(str(changes["data.path"])).is_file():
        splits = {arguments.split: load(config.data, task.schema)["train"]}
    else:
        splits, _ = read_splits(config, task, held_out=arguments.split != "train")
    if arguments.split not in splits:
        raise UserError(f"--split {arguments.split}: the data has {', '.join(splits)}")
    predictor = open_predictor(arguments.workdir, config, arguments.step)
    split = splits[arguments.split]
    outputs, examples = predictor.outputs(split)
    found = task.score(outputs, examples, split, predictor.names)
    found |= predictor.written_scores(split)
    found |= {"step": predictor.step, "data": split.file}
    of_step = "" if arguments.step is None else f"_step_{arguments.step}"
    file = arguments.workdir / f"evaluate_{arguments.split}{of_step}.json"
    _print_scores({arguments.split: found})  # also where the folder may only be read
    write_json(file, found)
    print(f"scores: {file}")


def _predict(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from ftjax import tasks
    from ftjax.data.sources import read_file
    from ftjax.tasks.written import Written
    from ftjax.training.predictor import open_predictor
    from ftjax.training.reading import PLACE, ROWS, read_config
    from ftjax.workdir.records import write_text

    config = read_config(arguments.workdir, rest, (*PLACE, *ROWS))
    schema = tasks.create(config.task).schema.to_predict()
    split = read_file(arguments.input, config.data, schema)
    predictor = open_predictor(arguments.workdir, config, arguments.step)
    outputs, examples = predictor.outputs(split)
    found = predictor.run.task.predictions(outputs, examples, split, predictor.names)
    if isinstance(predictor.run.task, Written):
        texts = predictor.written(split)
        found = [{**row, "written": text} for row, text in zip(found, texts, strict=True)]
    given = split.rows.remove_columns("row")
    rows = ({**row, **answer} for row, answer in zip(given, found, strict=True))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(arguments.output, lines)
    print(f"{len(found):,} predictions: {arguments.output}")


def _compare(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from ftjax.comparison.study import compare

    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    folder, jobs = arguments.workdir, arguments.jobs
    compare(arguments.config, methods, arguments.seeds, folder, rest, jobs)


def _export(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from ftjax.formats.export import write_export
    from ftjax.formats.folder import hub_name
    from ftjax.training.predictor import open_predictor
    from ftjax.training.reading import read_config

    config = read_config(arguments.workdir, rest)
    predictor = open_predictor(arguments.workdir, config, arguments.step)
    run = predictor.run
    note = write_export(
        arguments.format,
        arguments.output,
        run.folder,
        run.tuned,
        predictor.params,
        run.task.output_names(predictor.names),
        run.task.problem_type,
        base=hub_name(run.config.model.path, run.folder),
        dtype=arguments.dtype,
        shard_bytes=arguments.max_shard_size,
    )
    print(f"step {predictor.step} exported as {arguments.format}: {arguments.output}")
    if note:
        print(note)


def _generate(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from ftjax.generation.command import run

    run(arguments, rest)


def _list(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from ftjax.data.preparation import STEPS
    from ftjax.methods import METHODS
    from ftjax.models import table
    from ftjax.regularization import REGULARIZERS
    from ftjax.tasks import TASKS

    optimizers = {
        "adamw": "Adam with decoupled weight decay",
        "sgd": "stochastic gradient descent, with momentum if asked",
        "adafactor": "factored second moments",
        "lion": "sign of an interpolated momentum",
    }
    tables = {
        "methods": {name: entry[-1] for name, entry in METHODS.items()},
        "models": table(),
        "tasks": {name: entry[-1] for name, entry in TASKS.items()},
        "optimizers": optimizers,
        "regularizers": REGULARIZERS,
        "preparation": {name: entry[-1] for name, entry in STEPS.items()},
    }
    for name, text in tables[arguments.what].items():
        print(f"{name:<22}{text}")


COMMANDS = {
    "train": _train,
    "compile": _compile,
    "evaluate": _evaluate,
    "predict": _predict,
    "compare": _compare,
    "export": _export,
    "generate": _generate,
    "list": _list,
}
