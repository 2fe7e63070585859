"""Prompted causal and masked models score labels as transformers' models do."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from ftjax.config import default_config
from ftjax.data.sources import load
from ftjax.errors import UserError
from ftjax.evaluation.predictor import open_predictor
from ftjax.methods.prompting import CONTENT_FREE, calibrated, label_means
from ftjax.runs.zero_shot import choose_template
from ftjax.tasks.classification import Classification
from tests.conftest import ftjax, write_jsonl, write_tokenizer
from tests.generation.conftest import write_model
from tests.models.reference import Reference

NAMES = ("negative", "positive")
WORDS = (["bad", "not very good"], ["very good"])  # of one, three and two tokens
CAUSAL = ("{text} it was {label}", "the film : {text} or {label}")
MASKED = ("{text} it was {mask} .", "it is {mask} : {text}")


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("causal") / "llama", "llama", "causal_lm")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    Reference.make("bert", "masked_lm", folder)
    write_tokenizer(folder)
    return folder


def settings(model, corpus, **method):
    config = default_config("prompting")
    config.model.path, config.data.path = str(model), str(corpus)
    config.model.segments = "scan"
    config.data.max_length, config.data.buckets = 64, 1
    config.data.batching, config.train.eval_batch_size = "pad", 16
    for name, value in method.items():
        config.method[name] = value
    return config


class Theirs:
    """The reference: a row at a time, without padding, without what is kept of a prompt."""

    def __init__(self, folder, kind):
        torch.set_num_threads(1)
        auto = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}[kind]
        self.model = getattr(transformers, auto).from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def log_probabilities(self, ids):
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()

    def likelihood(self, prompt, word):
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        label = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        found = self.log_probabilities(ids + label)[len(ids) - 1 : -1]
        return found[np.arange(len(label)), label].mean()

    def labels(self, prompt):
        """Of each label the mean over its words."""
        return [np.mean([self.likelihood(prompt, word) for word in words]) for words in WORDS]

    def at_mask(self, prompt, words):
        ids = self.tokenizer(prompt)["input_ids"]
        at = ids.index(self.tokenizer.mask_token_id)
        numbers = self.tokenizer.convert_tokens_to_ids(words)
        return self.log_probabilities(ids)[at, numbers]


def test_likelihoods_calibration_and_choice_equal_the_reference(causal, corpus, tmp_path):
    """Few shots: templates are chosen on validation, and predict says what the run said."""
    config = settings(
        causal,
        corpus,
        templates=CAUSAL,
        words=("bad|not very good", "very good"),
        separator=" ",
        shots=2,
        calibrate=True,
    )
    config.data.buckets = 2
    result = choose_template(config, tmp_path)
    shown = result["demonstrations"]
    train = load(config.data, Classification.schema)["train"]
    pairs = set(zip(train.column("text"), train.column("label"), strict=True))
    assert all((row["text"], row["label"]) in pairs for row in shown)
    assert sorted(row["label"] for row in shown) == list(NAMES)

    theirs = Theirs(causal, "causal")
    first = {name: words[0] for name, words in zip(NAMES, WORDS, strict=True)}

    def prompt(template, text, shown):
        """The first demonstrations are left out until 64 tokens hold it and three of a label."""
        ask = template.replace("{label}", "").rstrip()
        said = [ask.replace("{text}", r["text"]) + f" {first[r['label']]}" for r in shown]
        whole = " ".join([*said, ask.replace("{text}", text)])
        fits = len(theirs.tokenizer(whole, add_special_tokens=False)["input_ids"]) + 3 <= 64
        return (whole, shown) if fits else prompt(template, text, shown[1:])

    def score(template, text, shown):
        def softmax(x):
            return np.exp(x) / np.exp(x).sum()

        asked, shown = prompt(template, text, shown)
        free = [softmax(theirs.labels(prompt(template, c, shown)[0])) for c in CONTENT_FREE]
        found = softmax(theirs.labels(asked))
        return np.log(found / np.mean(free, axis=0))

    validation = load(config.data, Classification.schema)["validation"]
    texts = validation.column("text")
    truth = np.array([NAMES.index(label) for label in validation.column("label")])
    wanted = {t: np.array([score(t, text, shown) for text in texts]) for t in CAUSAL}
    for template, scores in wanted.items():
        accuracy = float((scores.argmax(-1) == truth).mean())
        assert result["templates"][template] == pytest.approx(accuracy)
    assert result["template"] == max(CAUSAL, key=result["templates"].get)
    assert result["kind"] == "causal" and result["calibrated"] is True

    scores, examples = open_predictor(tmp_path).outputs(validation)
    np.testing.assert_allclose(scores, wanted[result["template"]], atol=1e-4)
    assert len(set(examples.lengths.tolist())) > 5


def test_zero_shot_commands_agree(causal, corpus, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from tests.runs.test_zero_shot import settings, CAUSAL\n"
        f"def get_config(): return settings({str(causal)!r}, {str(corpus)!r}, "
        "templates=CAUSAL[:1], words=('bad', 'very good'))\n"
    )
    work, out = tmp_path / "work", tmp_path / "out.jsonl"
    ftjax("train", "--config", file, "--workdir", work)
    result = json.loads((work / "result.json").read_text())
    ftjax("evaluate", "--workdir", work)
    scored = json.loads((work / "evaluate_test.json").read_text())
    assert scored["confusion"] == result["metrics"]["test"]["confusion"]
    assert scored["loss"] == pytest.approx(result["metrics"]["test"]["loss"], abs=1e-6)
    test = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    texts = write_jsonl(tmp_path / "in.jsonl", [{"text": row["text"]} for row in test])
    ftjax("predict", "--workdir", work, "--input", texts, "--output", out)
    found = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    right = np.mean([a == b["label"] for a, b in zip(found, test, strict=True)])
    # of texts that stand twice in the file, the run leaves one out
    assert scored["examples"] == len({row["text"] for row in test}) == len(test)
    assert right == pytest.approx(scored["accuracy"])


def test_masked_scores_equal_the_reference(masked, corpus, tmp_path):
    model, work = tmp_path / "model", tmp_path / "work"
    shutil.copytree(masked, model)
    config = settings(model, corpus, templates=MASKED, words=("bad|awful|poor", "good"))
    result = choose_template(config, work)
    assert result["kind"] == "masked"
    theirs, test = Theirs(masked, "masked"), load(config.data, Classification.schema)["test"]
    words = ["bad", "awful", "poor", "good"]
    wanted = []
    for text in test.column("text"):
        prompt = result["template"].replace("{text}", text).replace("{mask}", "[MASK]")
        bad, awful, poor, good = theirs.at_mask(prompt, words)
        wanted.append([(bad + awful + poor) / 3, good])
    found, _ = open_predictor(work).outputs(test)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    changed = json.loads((model / "config.json").read_text()) | {"layer_norm_eps": 1e-3}
    (model / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="is of another base model"):
        open_predictor(work).outputs(test)


def test_nearest_demonstrations_are_found_again(causal, tiny, corpus, tmp_path):
    """Each text has its own, of the training split; without that split the work folder has them."""
    config = settings(
        causal,
        corpus,
        templates=CAUSAL[:1],
        words=("bad", "good"),
        separator=" ",
        shots=1,
        demonstrations="nearest",
        encoder=str(tiny),
    )
    result = choose_template(config, tmp_path)
    splits = load(config.data, Classification.schema)
    train, test = splits["train"], splits["test"]
    model = transformers.AutoModel.from_pretrained(tiny).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)

    def embed(texts):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            found = model(**inputs).last_hidden_state[:, 0].numpy()
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    (asked, pool), labels = (embed(s.column("text")) for s in (test, train)), train.column("label")
    nearest = (asked @ pool.T).argmax(-1)
    theirs, wanted = Theirs(causal, "causal"), []
    for text, i in zip(test.column("text"), nearest, strict=True):
        word = {"negative": "bad", "positive": "good"}[labels[i]]
        prompt = f"{train.column('text')[i]} it was {word} {text} it was"
        wanted.append([theirs.likelihood(prompt, word) for word in ("bad", "good")])
    found, _ = open_predictor(tmp_path).outputs(test)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert result["demonstrations"] == "1 nearest of " + str(len(set(train.column("text"))))


def test_the_test_split_does_not_choose(causal, corpus, tmp_path):
    """With other labels in the test split the same template is chosen."""
    other = tmp_path / "turned"
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (corpus / f"{split}.jsonl").read_text().splitlines()]
        if split == "test":
            rows = [{**row, "label": "positive"} for row in rows]
        write_jsonl(other / f"{split}.jsonl", rows)
    words, results = ("bad", "good"), []
    for folder in (corpus, other):
        config = settings(causal, folder, templates=CAUSAL, words=words)
        results.append(choose_template(config, tmp_path / folder.name / "work"))
    first, second = results
    assert first["template"] == second["template"] and first["templates"] == second["templates"]
    confusion = [np.array(result["metrics"]["test"]["confusion"]) for result in results]
    assert confusion[1].tolist() == [[0, 0], confusion[0].sum(0).tolist()]


def test_formulas():
    random = np.random.default_rng(0)
    scores, free = random.normal(size=(5, 3)), random.normal(size=(5, 2, 3))
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    q = (np.exp(free) / np.exp(free).sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(np.exp(calibrated(scores, free)), p / q, rtol=1e-6)
    wanted = np.stack([scores[:, 0], scores[:, 1:].mean(1)], 1)
    np.testing.assert_allclose(label_means(scores, [1, 2]), wanted)


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        ("tiny", {"kind": "masked"}, "has no head of a language model"),
        ("causal", {"kind": "masked"}, "no head for 'masked_lm'"),
        ("causal", {"kind": "sentence"}, "no sentence encoder"),
        ("tiny", {"shots": 2}, "method.shots=2 needs a causal or masked model"),
        ("tiny", {"calibrate": True}, "method.calibrate=True needs"),
        ("masked", {"templates": ("{text} {label}",)}, "lacks '{mask}'"),
        (
            "causal",
            {"shots": 2, "demonstrations": "nearest", "encoder": "no/such/model"},
            "method.encoder: .*is neither",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(model, method, message, request, corpus, tmp_path):
    folder = request.getfixturevalue(model)
    with pytest.raises(UserError, match=message):
        choose_template(settings(folder, corpus, words=("bad", "good"), **method), tmp_path)


def test_several_templates_need_a_validation_split(causal, corpus, tmp_path):
    config = settings(causal, corpus / "train.jsonl", templates=CAUSAL, words=("bad", "good"))
    config.data.splits.validation = 0.0
    with pytest.raises(UserError, match="set data.splits.validation"):
        choose_template(config, tmp_path)
