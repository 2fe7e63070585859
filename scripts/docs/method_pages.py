"""A page for each method, from its class, its file and what was measured of it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ftjax.formats.peft.forms import FORMS
from ftjax.methods import METHODS, find
from ftjax.methods.method import Method
from ftjax.methods.rates import OTHER, RATES, SIZES
from scripts.docs import counts, figures
from scripts.docs.markdown import escaped, fenced, options_table, prose, sections, table, wrapped

GROUPS = {  # heading → modules of ftjax.methods
    "Selections": ("selection", "schedules", "galore"),
    "Updates of projections": (
        *("lora", "rslora", "lora_plus", "lora_fa", "dora", "pissa", "adalora", "vera"),
        *("loha", "lokr", "oft", "ia3", "qlora"),
    ),
    "Adapters": ("bottleneck", "compacter", "fusion"),
    "Soft prompts": ("prompt", "prefix"),
}
OTHERS = "Others"
CHANGED = "The method changes the computation: what is exported is an adapter, not a merged model."
COST = ("FLOPs", "temporaries", "optimizer", "base", "on disk")


def pages() -> dict[str, str]:
    """Path → text, of all methods and their index."""
    every = json.loads(counts.FILE.read_text(encoding="utf-8"))
    found = {f"methods/{name}.md": page(name, every.get(name, {})) for name in METHODS}
    return {"methods/index.md": index(every), **found}


def grouped() -> dict[str, list[str]]:
    """Heading → names of methods."""
    groups: dict[str, list[str]] = {heading: [] for heading in (*GROUPS, OTHERS)}
    for name, entry in METHODS.items():
        own = (heading for heading, modules in GROUPS.items() if entry[0] in modules)
        groups[next(own, OTHERS)].append(name)
    return groups


def index(every: Mapping[str, Any]) -> str:
    """All methods, a line each."""
    lines = [
        "# Methods",
        "",
        "A method is a selection of the parameters that train, plus the parameters it adds. Each",
        "page is made from the method's own file: formula, options, parameters, cost, scores, and",
        "the whole source. How to choose one is in [choosing a method](../guides/choosing.md).",
        "",
    ]
    for heading, names in grouped().items():
        rows = []
        for name in names:
            score = figures.scores()["SST-2"].get(name)
            cost = figures.cost()["bert-base"].get(name)
            rows.append(
                (
                    f"[`{name}`]({name}.md)",
                    escaped(METHODS[name][-1]),
                    shown(every.get(name, {}).get("bert-base")),
                    cost["FLOPs"] if cost else "–",
                    figures.score_in(score)[1].partition(" [")[0] if score else "–",
                )
            )
        head = ("method", "trains", "on BERT-base", "FLOPs", "SST-2")
        lines += [f"## {heading}", "", table(head, rows, right=(2, 3, 4))]
    lines += [
        "Parameters are those of BERT-base with two labels; FLOPs are of a train step, as a share",
        "of full fine-tuning's; SST-2 is test accuracy ± the deviation over three seeds, of MiniLM",
        "after three epochs of 2,000 examples, at the best of three learning rates.",
    ]
    return "\n".join(lines)


def page(name: str, trained: Mapping[str, Any]) -> str:
    """The page of one method."""
    cls, module = find(name), METHODS[name][0]
    says, *more = sections(cls)[""].split("\n\n")
    file = f"ftjax/methods/{module}.py"
    text = [
        "---",
        f"title: {name}",
        f'description: "{name}: {METHODS[name][-1]}"',
        "---",
        "",
        f"# {name}",
        "",
        f"Trains {escaped(METHODS[name][-1])}." if cls.trains else escaped(METHODS[name][-1]) + ".",
        "",
        '<div class="method" markdown>',
        "",
        '<div class="formula" markdown>',
        "",
        prose(says),
        "</div>",
        "",
        prose("\n\n".join(more)),
        *parents(cls),
        "## Options",
        "",
        options_table(cls, "method."),
        *use(name),
        *parameters(trained),
        *rates(name),
        *costs(name),
        *measured(name),
        *equal(name, cls),
        "</div>",
        "",
        '<div class="source" markdown>',
        "",
        "## Source",
        "",
        fenced((figures.ROOT / file).read_text(encoding="utf-8"), "python", file),
        "</div>",
    ]
    return "\n".join(text)


def parents(cls: type) -> Iterator[str]:
    """Of what a class takes from other methods, where that is said."""
    known = {find(name): name for name in METHODS}
    bases = [base for base in cls.__mro__[1:] if base in known]
    if bases:
        names = ", ".join(f"[`{known[base]}`]({known[base]}.md)" for base in bases)
        yield f"A variant of {names}, whose page says the rest.\n"


def use(name: str) -> Iterator[str]:
    yield "## Use\n"
    data = "--task classification --data DATA --model minilm"
    yield fenced(wrapped(f"ftjax train {data} --method {name} --workdir runs/{name}"), "bash")
    yield fenced(
        "import ftjax\n\n"
        f'config = ftjax.config(task="classification", method="{name}", data="DATA")\n'
        f'result = ftjax.train(config, "runs/{name}")',
        "python",
    )


def parameters(trained: Mapping[str, Any]) -> Iterator[str]:
    yield "## Trainable parameters\n"
    rows = [(f"`{model}`", shown(found), share(found)) for model, found in trained.items()]
    yield table(("model", "trained", "share"), rows, right=(1, 2))
    why = [f"`{model}`: {escaped(found)}." for model, found in trained.items() if refused(found)]
    yield from (f"{line}\n" for line in why)
    yield (
        "Counted of shapes, with the options' defaults: BERT-base and Llama 3.2 1B with a "
        "classifier of two labels, T5-base with its own head of words.\n"
    )


def refused(found: Any) -> bool:
    return isinstance(found, str)


def shown(found: Any) -> str:
    return "–" if found is None or refused(found) else f"{found[0]:,}"


def share(found: Any) -> str:
    return "–" if refused(found) else f"{found[0] / found[1]:.3%}"


def rates(name: str) -> Iterator[str]:
    """What `optimizer.learning_rate=auto` is."""
    if not find(name).trains:
        return
    yield "## Learning rate\n"
    own = RATES.get(name, OTHER)
    rows = [
        (f"{size / 1e6:,.0f} million", f"{rate:.2g}", escaped(own.source_at(int(size))))
        for size, rate in zip(SIZES, own.by_size, strict=True)
    ]
    yield table(("parameters", "rate", "from"), rows, right=(0, 1))
    yield (
        "`optimizer.learning_rate=auto`, with AdamW; between sizes by the logarithms. "
        + ("This method has no line in the table of rates." if name not in RATES else "")
        + "\n"
    )


def costs(name: str) -> Iterator[str]:
    yield "## Cost of a step\n"
    rows = [
        (f"`{model}`", *(row[name][key] for key in COST))
        for model, row in figures.cost().items()
        if name in row
    ]
    if not rows:
        yield "Not measured: the method takes no train step that could be compared.\n"
        return
    yield table(("model", *COST), rows, right=range(1, 6))
    yield (
        "FLOPs and temporaries as shares of full fine-tuning's, of 8 rows of 128 tokens; base is "
        "what is kept of the frozen model in memory, on disk what a checkpoint holds besides "
        "optimizer state. From `experiments/METHOD_COST.md`, where how it was measured is said.\n"
    )


def measured(name: str) -> Iterator[str]:
    yield "## Scores\n"
    rows = []
    for task, found in figures.scores().items():
        if name in found:
            metric, score = figures.score_in(found[name])
            rows.append((task, metric, score, found[name]["rate"] or "–"))
    if not rows:
        yield "Not in the studies of `experiments/COMPARISON.md`.\n"
        return
    yield table(("test split of", "metric", "three seeds", "rate"), rows, right=(2, 3))
    yield (
        "MiniLM, 2,000 training examples, three epochs; ± is the deviation over three seeds, the "
        "brackets the 95% interval that so many test examples give. See "
        "[choosing a method](../guides/choosing.md).\n"
    )


def equal(name: str, cls: type) -> Iterator[str]:
    """What the tests compare it with, and which formats hold it."""
    yield "## Equal to\n"
    if kind := figures.in_peft().get(name):
        yield (
            f"- `peft.{kind}`: outputs, gradients, 20 steps, and files both ways "
            "(`tests/methods/test_peft_parity.py`, `tests/formats/test_peft.py`)"
        )
    if folders := hub_folders(name):
        cases = ", ".join(f"`{folder}`" for folder in folders)
        yield (
            f"- AdapterHub's {cases}: outputs and gradients of folders that its library wrote "
            "(`tests/formats/test_adapterhub.py`)"
        )
    if files := figures.tested_in(name):
        yield f"- tests that name it: {', '.join(f'`{file}`' for file in files)}"
    yield "- every method: the invariants of `tests/methods/test_invariants.py`\n"
    yield "## Formats\n"
    yield f"- PEFT: {'written and read' if name in FORMS else 'no form there'}"
    yield f"- AdapterHub: {'written and read' if folders else 'no form there'}"
    merges = cls.merge is not Method.merge
    yield f"- merged into a Hugging Face folder: {'yes' if merges else 'no'}"
    yield "" if merges or not cls.trains else f"\n{CHANGED}\n"


def hub_folders(name: str) -> list[str]:
    """Folders of AdapterHub's library that a method is compared with."""
    others = {"reft": ("loreft", "noreft", "direft")}
    return [one for one in others.get(name, (name,)) if one in figures.in_adapterhub()]
