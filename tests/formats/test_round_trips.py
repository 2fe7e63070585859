"""What is exported of a run, read again by a run, scores as it did."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from ftjax import tasks
from ftjax.config import default_config
from ftjax.evaluation import preparation_models
from ftjax.evaluation.predictor import Predictor
from ftjax.formats.adapter import read_method
from ftjax.formats.export import write_export
from ftjax.setup.model import place_model
from ftjax.setup.splits import read_data
from tests.conftest import CONFIG, WORDS, perturbed, write_jsonl, write_tiny
from tests.covering import covering

pytestmark = pytest.mark.usefixtures("first_device")

HUB, FORMATS = "adapterhub", ("hf", "peft", "adapterhub")
NAMES = ("neutral", "angry", "joyful")  # not in the order that rows would give


def texts(count=16):
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(count)]


def labelled(*labels):
    return [{"text": t, "label": labels[i % len(labels)]} for i, t in enumerate(texts())]


CLASSES, STEPS = labelled(*NAMES), labelled("low", "high", "best")
MARKED = [
    {"text": f"<e1>{t.split()[0]}</e1> is <e2>{t}</e2>", "label": NAMES[i % 3]}
    for i, t in enumerate(texts())
]
TAGGED = [
    {
        "tokens": t.split(),
        "tags": ["B-b", *["O"] * (len(t.split()) - 2), "B-a"],
        "label": NAMES[i % 3],
    }
    for i, t in enumerate(texts())
]
CHOICES = [
    {"text": t, "choices": ["good film", "bad plot"], "label": i % 2} for i, t in enumerate(texts())
]
SPANS = [
    {
        "question": "the film",
        "context": t,
        "answers": {"text": [t.split()[1]], "answer_start": [len(t.split()[0]) + 1]},
    }
    for t in texts()
]
PAIRS = [{"text": t, "text_pair": t[::-1], "label": i / 16} for i, t in enumerate(texts())]
# Task, its options, rows, formats; of a plain encoder, of one with a Dense layer after means.
CASES = [
    ("classification", {"labels": NAMES}, CLASSES, FORMATS),
    ("classification", {"labels": NAMES, "pooling": "mean"}, CLASSES, FORMATS),
    ("multilabel", {"labels": NAMES, "pooling": "mean"}, CLASSES, FORMATS),
    ("ordinal", {"labels": ("low", "high", "best")}, STEPS, FORMATS),
    ("ordinal", {"labels": ("low", "high", "best"), "pooling": "mean"}, STEPS, ("hf", "peft")),
    ("regression", {"pooling": "mean"}, labelled(0.5, 1.5, 4.0), FORMATS),
    ("relation", {"labels": NAMES, "pooling": "cls"}, MARKED, ("hf", HUB)),
    ("token_classification", {"labels": ("B-b", "B-a", "O")}, TAGGED, FORMATS),
    ("multiple_choice", {}, CHOICES, ("hf", HUB)),
    ("span_qa", {"stride": 8}, SPANS, FORMATS),
    ("contrastive", {"pooling": "mean"}, PAIRS, FORMATS),
    ("contrastive", {"pooling": "cls"}, PAIRS, ("hf", "peft")),
    ("masked_lm", {}, [{"text": t} for t in texts()], ("hf",)),
]
SENTENCES = [
    ("classification", {"labels": NAMES}, CLASSES, FORMATS),
    ("classification", {"labels": NAMES, "pooling": "cls"}, CLASSES, FORMATS),
    ("contrastive", {}, PAIRS, FORMATS),
    ("token_classification", {"labels": ("B-b", "B-a", "O")}, TAGGED, ("hf",)),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=2)


@pytest.fixture(scope="module")
def sentences(tiny, tmp_path_factory):
    """A model of sentence-transformers: an encoder, means, and a Dense layer with tanh."""
    from sentence_transformers import models

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sentences") / "model"
    encoder = models.Transformer(str(tiny))
    pooling = models.Pooling(CONFIG["hidden_size"], "mean")
    dense = models.Dense(CONFIG["hidden_size"], 24)
    SentenceTransformer(modules=[encoder, pooling, dense, models.Normalize()]).save(str(folder))
    return folder


def configured(task, data, folder, method=None, **options):
    config = default_config("lora", task)
    config = default_config(method["name"], task) if method else config
    config.method.update(method or {})
    config.task.update({**options, **({"generate": 0} if "generate" in config.task else {})})
    config.model.path, config.data.path = str(folder), str(data)
    config.data.max_length, config.data.prepare, config.train.eval_batch_size = 32, (), 8
    config.data.splits.validation = config.data.splits.test = 0.0
    return config


def scored(config, folder, move=False):
    """A run's model, with what the method and the head have moved, and its scores."""
    data = read_data(config, tasks.create(config.task), folder, preparation_models)
    run = place_model(config, data.names)
    if move:
        run = replace(run, trainable=perturbed(run.trainable, run.tuned))
    else:
        assert not run.absent, run.absent
    predictor = Predictor(run, data.names, 0, folder)
    outputs, examples = predictor.outputs(data.raw["train"])
    return predictor, run.task.score(outputs, examples, data.raw["train"], data.names)


def agree(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        elif name != "per_class":
            assert found[name] == value, name


def name_of(case):
    return "-".join([case[0], *map(str, case[1].values())])[:40]


BASES = [*(("tiny", case) for case in CASES), *(("sentences", case) for case in SENTENCES)]
EACH = [(number, kind) for number, (_, case) in enumerate(BASES) for kind in case[3]]
FEW = covering(EACH)


def trips():
    """Base, case and formats: few, and the rest of them."""
    for number, (base, case) in enumerate(BASES):
        name = f"{base}-{name_of(case)}"
        few = [kind for kind in case[3] if (number, kind) in FEW]
        rest = [kind for kind in case[3] if kind not in few]
        yield pytest.param(base, case, few, id=f"{name}-{'-'.join(few)}")
        if rest:
            yield pytest.param(base, case, rest, id=f"{name}-rest", marks=pytest.mark.product)


@pytest.mark.parametrize(("base", "case", "formats"), trips())
def test_exports_are_read_with_their_scores(base, case, formats, request, tmp_path):
    task, options, rows, _ = case
    folder = request.getfixturevalue(base)
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    predictor, wanted = scored(configured(task, data, folder, **options), folder, move=True)
    run, names = predictor.run, predictor.names
    # What folders say; a relation's pooling is not "auto" unless told.
    forgotten = ("labels",) if task == "relation" else ("labels", "pooling")
    for kind in formats:
        out = tmp_path / kind
        outputs = run.task.output_names(names)
        problem = run.task.problem_type
        write_export(kind, out, folder, run.tuned, predictor.params, outputs, problem)
        place, method = (out, None) if kind == "hf" else (folder, read_method(out))
        known = {k: v for k, v in options.items() if k not in forgotten}
        config = configured(task, data, place, method, **known)
        if kind != "hf":
            config.model.adapter = str(out)
        again, found = scored(config, place)
        assert again.names == names
        agree(found, wanted)


def test_what_transformers_cannot_read_is_said(sentences, tmp_path):
    """Labels stand in config.json, and the page and the note say what the head is read by."""
    data = write_jsonl(tmp_path / "train.jsonl", CLASSES)
    predictor, _ = scored(configured("classification", data, sentences), sentences, move=True)
    run, out = predictor.run, tmp_path / "out"
    note = write_export("hf", out, sentences, run.tuned, predictor.params, predictor.names)
    page = (out / "README.md").read_text()
    assert "AutoModelForSequenceClassification would start a new one" in note and note in page
    assert "SentenceTransformer(" in page and "library_name: sentence-transformers" in page
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.id2label == dict(enumerate(sorted(NAMES)))
    rows = predictor.outputs(
        read_data(run.config, run.task, sentences, preparation_models).raw["train"]
    )[0]
    theirs = SentenceTransformer(str(out), device="cpu").encode([row["text"] for row in CLASSES])
    np.testing.assert_allclose(rows, theirs, atol=1e-4)


def test_embeddings_with_dense_layers_equal_sentence_transformers(sentences, tmp_path):
    data = write_jsonl(tmp_path / "train.jsonl", PAIRS)
    run = place_model(configured("contrastive", data, sentences), ())
    assert not run.absent
    predictor = Predictor(run, (), 0, sentences)
    outputs, _ = predictor.outputs(
        read_data(run.config, run.task, sentences, preparation_models).raw["train"]
    )
    theirs = SentenceTransformer(str(sentences), device="cpu").encode(texts())
    assert theirs.shape[1] == 24
    np.testing.assert_allclose(outputs[:, 0], theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "sentence_transformers.models.LSTM"}, "modules.json: a module LSTM is not impl"),
        ({"path": "../other"}, "names '../other', which is no numbered folder beside it"),
    ],
)
def test_modules_that_are_not_read_are_named(sentences, change, message, tmp_path):
    from ftjax.errors import UserError
    from ftjax.formats.sentence_transformers.modules import pooled

    listed = json.loads((sentences / "modules.json").read_text())
    listed[2] |= change
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match=message):
        pooled(tmp_path)
