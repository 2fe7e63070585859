"""Texts from texts: losses against transformers' models, metrics against their libraries."""

import json
import unicodedata
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax
import pytest
import sacrebleu
import torch
import transformers
from rouge_score.rouge_scorer import RougeScorer
from transformers.trainer_pt_utils import LabelSmoother

from ftjax.config import default_config
from ftjax.data.encode import Examples, ragged
from ftjax.data.loading import Loader
from ftjax.data.planning import EMPTY, bucket_layout, paired_layout
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.partition import merge
from ftjax.tasks.seq2seq import Seq2Seq
from ftjax.tasks.written import exact_match, summary_scores, translation_scores
from ftjax.training.run import place_model
from ftjax.training.writing import check_written, write, written_scores
from tests.compiler import OPTIONS
from tests.conftest import WORDS
from tests.models.cases import BART, CASES
from tests.models.reference import Reference
from tests.tasks.made import (
    Made,
    batches,
    equals,
    examples_of,
    split_of,
    tensors,
    write_trained,
    write_words,
)

TASK = Seq2Seq(max_target=16)


def rows_of(count, seed=0):
    random = np.random.default_rng(seed)

    def text(most):
        return " ".join(random.choice(WORDS, int(random.integers(1, most))))

    return [{"source": text(20), "target": text(12)} for _ in range(count)]


def made_batch(case, config, rows=4, seed=0):
    """Ids that end as the case's tokenizer ends texts, padded."""
    random = np.random.default_rng(seed)
    ids, targets = random.integers(5, 64, (rows, 9)), random.integers(5, 64, (rows, 7))
    read, written = 9 - np.arange(rows) % 4, 7 - np.arange(rows)[::-1] % 3
    for table, sizes in ((ids, read), (targets, written)):
        table[np.arange(rows), sizes - 1 - (case == "mbart")] = config.eos_token_id
    mask, real = (np.arange(len(t[0])) < n[:, None] for t, n in ((ids, read), (targets, written)))
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.astype(np.int32),
        "targets": targets * real,
        "target_weights": real.astype(np.float32),
        "weights": np.ones(rows, np.float32),
    }


@pytest.mark.parametrize("case", ["t5", "t5-v1.1", "bart", "mbart", "marian"])
def test_loss_and_gradients_equal_transformers(case, tmp_path):
    made = Made.of(TASK, case, "seq2seq_lm", tmp_path)
    batch = made_batch(case, made.theirs.config)
    labels = np.where(batch["target_weights"] > 0, batch["targets"], -100)
    out = made.theirs(**tensors(batch, "input_ids", "attention_mask"), labels=torch.tensor(labels))
    out.loss.backward()
    found_loss, gradients = made.gradients(batch)
    np.testing.assert_allclose(found_loss, out.loss.item(), rtol=1e-5)
    equals(gradients, made.theirs)
    if case != "t5":  # the families share what follows
        return
    apply = jax.jit(partial(made.tuned.apply, made.params), compiler_options=OPTIONS)
    found = np.asarray(TASK.outputs(apply, batch))
    np.testing.assert_allclose(found.sum(0)[0] / found.sum(0)[2], out.loss.item(), rtol=1e-5)
    hits = (out.logits.argmax(-1).numpy() == labels).sum()
    assert found.sum(0)[1] == hits and (found[:, 2] == batch["target_weights"].sum(1)).all()


@pytest.mark.parametrize("case", ["t5", "bart"])
def test_label_smoothing_equals_transformers(case, tmp_path):
    made = Made.of(Seq2Seq(max_target=16, label_smoothing=0.1), case, "seq2seq_lm", tmp_path)
    batch = made_batch(case, made.theirs.config)
    labels = torch.tensor(np.where(batch["target_weights"] > 0, batch["targets"], -100))
    out = made.theirs(**tensors(batch, "input_ids", "attention_mask"), labels=labels)
    loss = LabelSmoother(epsilon=0.1)(out, labels)
    loss.backward()
    found, gradients = made.gradients(batch, train=True)
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    equals(gradients, made.theirs)
    outputs = made.task.outputs(partial(made.tuned.apply, made.params), batch)  # never smoothed
    np.testing.assert_allclose(outputs[:, 0].sum() / outputs[:, 2].sum(), out.loss.item(), 1e-5)


def test_a_share_of_smoothing_that_is_none():
    with pytest.raises(UserError, match=r"task.label_smoothing=1.0 must be in \[0, 1\)"):
        Seq2Seq(label_smoothing=1.0)


@pytest.mark.parametrize("case", ["t5", "bart"])
@pytest.mark.parametrize(
    "method",
    [{"name": "lora", "rank": 4}, {"name": "prompt_tuning", "length": 4}],
    ids=["lora", "prompt"],
)
def test_methods_learn(case, method, tmp_path):
    """A few steps of Adam on one batch."""
    made = Made.of(TASK, case, "seq2seq_lm", tmp_path, **method)
    batch = made_batch(case, made.theirs.config)
    trainable, frozen = made.tuned.partition.split(made.params)
    optimizer = optax.adam(0.02)

    @partial(jax.jit, compiler_options=OPTIONS)
    def step(params, state):
        def mean(params):
            loss = TASK.loss(partial(made.tuned.apply, merge(params, frozen)), batch, True)
            return loss.total / loss.weight

        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(grads, state)
        return loss, optax.apply_updates(params, updates), state

    state, losses = optimizer.init(trainable), []
    for _ in range(12):
        loss, trainable, state = step(trainable, state)
        losses.append(float(loss))
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.1, losses
    labels = np.where(batch["target_weights"] > 0, batch["targets"], -100)
    if method["name"] == "lora":  # which starts as the model is
        inputs = tensors(batch, "input_ids", "attention_mask")
        with torch.no_grad():
            wanted = made.theirs(**inputs, labels=torch.tensor(labels)).loss.item()
        np.testing.assert_allclose(losses[0], wanted, rtol=1e-5)


def test_scores_have_the_loss_of_training(tmp_path):
    folder = write_words(tmp_path, eos="[SEP]")
    made = Made.of(TASK, "t5", "seq2seq_lm", folder)
    split, names, examples = examples_of(TASK, rows_of(13), folder)
    scores = TASK.score(made.outputs(examples), examples, split, names)
    np.testing.assert_allclose(scores["loss"], made.sums(batches(examples, 4)), rtol=1e-5)
    np.testing.assert_allclose(scores["perplexity"], np.exp(scores["loss"]))
    assert scores["tokens"] == examples.decoder.lengths.sum() and scores["examples"] == 13


def test_tokens_equal_the_tokenizers(tmp_path):
    folder = write_trained(tmp_path, "unigram", [" ".join(WORDS)] * 3)
    task, rows = Seq2Seq(prefix="film: ", max_target=8), rows_of(12)
    _, _, examples = examples_of(task, rows, folder, 16)
    tokenizer, cut = load_tokenizer(folder), 0
    for i, row in enumerate(rows):
        source = tokenizer("film: " + row["source"])["input_ids"]
        target = tokenizer(row["target"])["input_ids"]
        assert examples.ids[i].tolist() == (
            source if len(source) <= 16 else [*source[:15], source[-1]]
        )
        assert target[-1] == tokenizer.eos_token_id
        wanted = target if len(target) <= 8 else [*target[:7], target[-1]]
        assert examples.decoder[i].tolist() == wanted
        cut += len(source) > 16 or len(target) > 8
    assert examples.truncated == cut > 0


def test_ends_of_targets(tmp_path):
    """Of tokenizers that do not end texts, and of mBART's, which ends them with the language."""
    row = [{"source": "good", "target": "good bad"}]
    tokenizer = load_tokenizer(write_trained(tmp_path / "bpe", "bpe", ["good bad"] * 3))
    bare = tokenizer("good bad", add_special_tokens=False)["input_ids"]
    _, _, examples = examples_of(TASK, row, tmp_path / "bpe")
    assert examples.decoder[0].tolist() == [*bare, tokenizer.eos_token_id]
    folder = write_words(tmp_path / "mbart", eos="[SEP]")
    file = folder / "tokenizer.json"
    kept = json.loads(file.read_text())
    kept["post_processor"] = {  # a text, the end, and a word for a language
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            *({"SpecialToken": {"id": t, "type_id": 0}} for t in ("[SEP]", "film")),
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            t: {"id": t, "ids": [kept["model"]["vocab"][t]], "tokens": [t]}
            for t in ("[SEP]", "film")
        },
    }
    file.write_text(json.dumps(kept))
    for limit, wanted in ((16, "good bad [SEP] film"), (3, "good [SEP] film")):
        _, _, examples = examples_of(Seq2Seq(max_target=limit), row, folder)
        assert load_tokenizer(folder).decode(examples.decoder[0]) == wanted


@pytest.mark.parametrize("seed", [0, None])
def test_layouts_of_two_lengths_hold_every_example_once(seed):
    random = np.random.default_rng(0)
    read = random.integers(1, 60, 150)
    written = np.minimum(read, 30) // 2 + random.integers(1, 20, 150)
    written[::50] = 70  # a few that do not fit where their sources do
    examples = Examples(
        ragged([np.full(n, i + 1) for i, n in enumerate(read)]),
        decoder=ragged([np.full(n, i + 1) for i, n in enumerate(written)]),
    )
    layout = paired_layout(bucket_layout(read, 4), read, written)
    assert len(layout.written) == len(layout.lengths) and layout.written[0] < layout.written[-1]
    loader, seen = Loader(examples, 16, layout, seed), []
    for planned, batch in loader:
        assert (planned.length, planned.written) in zip(layout.lengths, layout.written, strict=True)
        for place, number in enumerate(planned.places):
            ids, targets = batch["input_ids"][place], batch["targets"][place]
            if number == EMPTY:
                assert not ids.any() and not batch["target_weights"][place].any()
                continue
            assert (ids == number + 1).sum() == batch["attention_mask"][place].sum() == read[number]
            assert (targets == number + 1).sum() == written[number]
            assert batch["target_weights"][place].sum() == written[number]
            seen.append(number)
    assert sorted(seen) == list(range(150))
    assert sum(len(p.places) * (p.length + p.written) for p, _ in loader) < 2 * (
        read.sum() + written.sum()
    )


TEXTS = ["the cat sat on a mat", "", "Ein Haus, ein Baum.", "a dog"]
WANTED = ["the cat sat on the mat", "nothing here", "Ein Haus und ein Baum.", "a dog"]


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char"])
def test_translation_scores_equal_sacrebleu(tokenize):
    texts, wanted = list(TEXTS), list(WANTED)
    if tokenize == "zh":
        texts, wanted = [*texts, "我是一名学生。"], [*wanted, "我是一个学生。"]
    found = translation_scores(texts, [[each] for each in wanted], tokenize)
    bleu = sacrebleu.corpus_bleu(texts, [wanted], tokenize=tokenize)
    assert 0 < found["bleu"] < 100
    np.testing.assert_allclose(found["bleu"], bleu.score)
    np.testing.assert_allclose(found["chrf"], sacrebleu.corpus_chrf(texts, [wanted]).score)
    assert f"tok:{tokenize}|" in found["bleu_signature"] and "version:" in found["bleu_signature"]
    assert found["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")
    assert translation_scores([""], [["good"]], tokenize)["bleu"] == 0.0
    several = [[each, "a cat", each + " too"][: 1 + number] for number, each in enumerate(wanted)]
    streams = [[each[i] if i < len(each) else None for each in several] for i in range(3)]
    found = translation_scores(texts, several, tokenize)
    bleu = sacrebleu.corpus_bleu(texts, streams, tokenize=tokenize)
    np.testing.assert_allclose(found["bleu"], bleu.score)
    np.testing.assert_allclose(found["chrf"], sacrebleu.corpus_chrf(texts, streams).score)
    with pytest.raises(UserError, match=r"task\.tokenize='13' \(did you mean '13a'"):
        translation_scores(texts, several, "13")


def test_summary_scores_equal_rouge():
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    texts = [*TEXTS, "The cats ran.\nÜber Nacht 2,5 €", "naïve cafés, running"]
    wanted = [*WANTED, "It ran 2.5 times\nThe cat was über.", "a naïve run of cafés"]
    single = [[each] for each in wanted]
    found, scorer = summary_scores(texts, single), RougeScorer(kinds, use_stemmer=True)
    each = [scorer.score(*pair) for pair in zip(wanted, texts, strict=True)]
    for kind in kinds:
        np.testing.assert_allclose(found[kind], np.mean([score[kind].fmeasure for score in each]))
    assert found["rougeL"] < found["rougeLsum"]  # sentences in another order
    several = [[each, "a mat", each + " too"] for each in wanted]
    found = summary_scores(texts, several)
    each = [scorer.score_multi(*pair) for pair in zip(several, texts, strict=True)]
    for kind in kinds:
        np.testing.assert_allclose(found[kind], np.mean([score[kind].fmeasure for score in each]))


@pytest.mark.parametrize(
    ("text", "wanted", "words", "pairs"),
    [  # words of both, those shared; pairs of neighbours likewise
        ("我是学生", "我学生", (4, 3, 3), (3, 2, 1)),
        ("Кошка сидела дома", "кошка спала дома", (3, 3, 2), (2, 2, 0)),
        ("すしが好き", "すしは好き", (5, 5, 4), (4, 4, 2)),
        ("ラーメン", "ラーメン", (4, 4, 4), (3, 3, 3)),
        ("안녕하세요 세계", "안녕하세요 여러분", (2, 2, 1), (1, 1, 0)),
        ("안녕 세계", unicodedata.normalize("NFD", "안녕 세계"), (2, 2, 2), (1, 1, 1)),
        ("हिन्दी में किताब", "हिन्दी में घर", (3, 3, 2), (2, 2, 1)),
        ("สวัสดี", "สวัสดี", (4, 4, 4), (3, 3, 3)),
        ("BERT 和 GPT2 模型", "BERT 与 GPT2 模型", (5, 5, 4), (4, 4, 2)),
        ("Ελλάδα ٣", "ελλάδα ٣", (2, 2, 2), (1, 1, 1)),
    ],
)
def test_rouge_of_other_scripts_by_hand(text, wanted, words, pairs):
    found = summary_scores([text], [[wanted]])
    for kind, (a, b, shared) in (("rouge1", words), ("rouge2", pairs)):
        np.testing.assert_allclose(found[kind], 2 * shared / (a + b), err_msg=kind)
    np.testing.assert_allclose(found["rougeL"], found["rouge1"])


def test_exact_match_by_hand():
    texts, wanted = ["The  Cat", "a dog", ""], [["the cat"], ["a cat"], ["a cat", " "]]
    assert exact_match(texts, wanted) == 2 / 3
    pattern = r"#### (-?[\d,]+)"
    texts = ["so 3 #### 1,200", "#### 5 no, #### 6", "7", "#### 8"]
    wanted = [["#### 1200"], ["#### 6"], ["#### 7"], ["well #### 9"]]
    assert exact_match(texts, wanted, pattern) == 2 / 4
    # a reference that says nothing to be compared is none
    assert exact_match([*texts, "#### 7"], [*wanted, ["about seven"]], pattern) == 2 / 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_words(folder, eos="[CLS]")
    Reference.make("bart", "seq2seq_lm", folder)
    assert CASES["bart"]().eos_token_id == load_tokenizer(folder).eos_token_id
    config = default_config("full", "seq2seq")
    config.model.path, config.data.max_length = str(folder), 32
    config.task.max_new_tokens, config.train.eval_batch_size = 10, 8
    config.task.prefix = "good "
    return place_model(config, ()), folder


def test_what_is_written_equals_transformers(run, monkeypatch):
    run, folder = run
    rows = rows_of(7, seed=4)
    rows[2]["source"] = " ".join(WORDS * 3)  # more than the model has positions for
    split = split_of(TASK, rows)
    assert check_written(run, split) == {"step": "prompt", "rows_in": 7, "rows_out": 7, "cut": 1}
    found = write(run, run.trainable, run.task.prompts(split))
    model = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer, texts = transformers.AutoTokenizer.from_pretrained(folder), []
    for row in rows:
        cut = {"truncation": True, "max_length": 32, "return_tensors": "pt"}
        inputs = tokenizer("good " + row["source"], **cut)
        inputs.pop("token_type_ids", None)
        (out,) = model.generate(**inputs, max_new_tokens=10, do_sample=False, num_beams=1)
        texts.append(tokenizer.decode(out, skip_special_tokens=True))
    assert found == texts and len(set(texts)) > 3, texts
    scores = written_scores(run, run.trainable, split)
    bleu = sacrebleu.corpus_bleu(texts, [[row["target"] for row in rows]])
    np.testing.assert_allclose(scores["bleu"], bleu.score)
    assert scores["written"] == 7
    again = [*rows, {**rows[0], "target": "a"}, {**rows[0], "target": "b"}]  # of one source
    scores = written_scores(run, run.trainable, split_of(TASK, again))
    streams = [[row["target"] for row in rows], *([each] + [None] * 6 for each in "ab")]
    np.testing.assert_allclose(scores["bleu"], sacrebleu.corpus_bleu(texts, streams).score)
    listed = [{**row, "references": ["a", "b"] if row is rows[0] else []} for row in rows]
    assert written_scores(run, run.trainable, split_of(TASK, listed)) == scores


def test_what_cannot_be_written_is_said_before_training(run):
    run, _ = run
    split = split_of(TASK, rows_of(2))
    for task, message in (
        (Seq2Seq(max_new_tokens=1000), "prompt and max_new_tokens need 1000 positions"),
        (Seq2Seq(tokenize="ja", max_new_tokens=9), "task.tokenize='ja'"),
    ):
        with pytest.raises(UserError, match=message):
            check_written(replace(run, task=task), split)


@pytest.mark.parametrize("kind", ["MBartTokenizer", "MBart50Tokenizer"])
def test_languages_are_those_of_transformers(kind, tmp_path):
    """Of texts, targets and what is written: one kind ends texts by them, one starts by them."""
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [("▁" + word, -1.0) for word in WORDS] + [("▁", -2.0)]
    tokenizer = getattr(transformers, kind)(vocab=pieces, src_lang="en_XX", tgt_lang="ro_RO")
    tokenizer.save_pretrained(tmp_path)
    sizes = {**BART, "vocab_size": len(tokenizer), "pad_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    sizes |= {"decoder_start_token_id": 2, "forced_eos_token_id": None, "init_std": 0.3}
    model = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**sizes)).eval()
    model.save_pretrained(tmp_path)
    config = default_config("full", "seq2seq")
    config.model.path, config.data.max_length = str(tmp_path), 32
    config.task.max_new_tokens, config.train.eval_batch_size = 10, 8
    config.task.languages = ("de_DE", "zh_CN")
    run = place_model(config, ())
    rows = rows_of(5, seed=4)
    split, _, examples = examples_of(run.task, rows, tmp_path)
    tokenizer.src_lang, tokenizer.tgt_lang = "de_DE", "zh_CN"
    zh, texts = tokenizer.convert_tokens_to_ids("zh_CN"), []
    first = "forced_bos_token_id" if kind == "MBart50Tokenizer" else "decoder_start_token_id"
    for number, row in enumerate(rows):
        inputs = tokenizer(row["source"], return_tensors="pt")
        assert examples.ids[number].tolist() == inputs["input_ids"][0].tolist()
        target = tokenizer(text_target=row["target"])["input_ids"]
        assert examples.decoder[number].tolist() == target and zh in target
        out = model.generate(**inputs, **{first: zh}, max_new_tokens=10, do_sample=False)
        texts.append(tokenizer.decode(out[0], skip_special_tokens=True))
    assert write(run, run.trainable, run.task.prompts(split)) == [text.strip() for text in texts]
    assert len(set(texts)) > 2, texts
    with pytest.raises(UserError, match=r"task\.languages: 'en' is not known.*en_XX"):
        examples_of(Seq2Seq(languages=("en", "zh_CN")), rows, tmp_path)


def test_bad_options_and_rows_are_named(tiny):
    with pytest.raises(UserError, match=r"task\.languages: the model's tokenizer has no languages"):
        examples_of(Seq2Seq(languages=("en_XX", "zh_CN")), rows_of(1), tiny)
    with pytest.raises(UserError, match=r"task\.languages=.* must be a source's and a target's"):
        Seq2Seq(languages=("en_XX",))
    for changes in ({"metrics": "bleu"}, {"max_target": 1}, {"num_beams": 0}):
        with pytest.raises(UserError, match=f"task.*{next(iter(changes))}"):
            Seq2Seq(**changes)
    with pytest.raises(UserError, match="row 2: field 'target' is empty"):
        examples_of(TASK, [*rows_of(1), {"source": "a", "target": " "}], tiny)
