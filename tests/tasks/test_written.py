"""What is written: texts against transformers', metrics against their libraries."""

import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu
import torch
import transformers
from rouge_score.rouge_scorer import RougeScorer

from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.evaluation.written_answers import check_written, write, written_scores
from ftjax.formats.folder import load_tokenizer
from ftjax.setup.model import place_model
from ftjax.tasks.seq2seq import Seq2Seq
from ftjax.tasks.written import exact_match, merged, summary_scores, translation_scores
from tests.conftest import WORDS
from tests.models.cases import BART, CASES
from tests.models.reference import Reference
from tests.tasks.small_models import (
    examples_of,
    split_of,
    write_words,
)
from tests.tasks.test_seq2seq import TASK, rows_of

pytestmark = pytest.mark.usefixtures("first_device")

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
    # without a group, all that the pattern is of
    assert exact_match(["it is 7 or 8", "9"], [["so 8"], ["8"]], r"\d+") == 1 / 2
    # a reference that says nothing to be compared is none
    assert exact_match([*texts, "#### 7"], [*wanted, ["about seven"]], pattern) == 2 / 4


def test_rows_that_ask_the_same_are_one():
    """Chats, too, in whichever order their fields are written."""
    chat = {"role": "user", "content": "hi"}
    prompts = ["a", [chat], "b", [dict(reversed(chat.items()))], "a", "a"]
    found = merged(prompts, [["1"], ["2"], [], ["3", "2"], ["4", "1"], ["5"]])
    assert found == (
        ["a", [chat], "b"],
        [["1", "4", "5"], ["2", "3"], []],
        [[0, 4, 5], [1, 3], [2]],
    )


def test_texts_that_are_not_as_many_as_references_are_no_scores():
    for measure in (exact_match, summary_scores):
        for texts, wanted in ((["a", "b"], [["a"]]), (["a"], [["a"], ["b"]])):
            with pytest.raises(ValueError, match="argument"):
                measure(texts, wanted)
    assert exact_match(["a"], [["a"]]) == summary_scores(["a"], [["a"]])["rouge1"] == 1.0
    assert exact_match([], []) == summary_scores([], [])["rougeL"] == 0.0
    assert exact_match(["a"], [[]]) == 0.0  # nothing is wanted of any


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
    beams = replace(run, task=replace(run.task, num_beams=2))
    best = write(beams, run.trainable, run.task.prompts(split))
    model = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer, texts = transformers.AutoTokenizer.from_pretrained(folder), []
    for row, sure, of_beams in zip(rows, found, best, strict=True):
        cut = {"truncation": True, "max_length": 32, "return_tensors": "pt"}
        inputs = tokenizer("good " + row["source"], **cut)
        inputs.pop("token_type_ids", None)
        (out,) = model.generate(**inputs, max_new_tokens=10, do_sample=False, num_beams=1)
        texts.append(tokenizer.decode(out, skip_special_tokens=True))
        with torch.no_grad():
            logits = model(**inputs, decoder_input_ids=out[None, :-1]).logits[0]
        chances = torch.log_softmax(logits, -1).gather(1, out[1:, None])[:, 0]
        assert sure.tokens == len(chances)
        np.testing.assert_allclose(sure.log_probability, chances.sum().item(), rtol=1e-4)
        mean = chances.mean().exp().item()
        assert sure.row()["probability"] == pytest.approx(mean, rel=1e-3)
        how = {"num_beams": 2, "output_scores": True, "return_dict_in_generate": True}
        out = model.generate(**inputs, max_new_tokens=10, do_sample=False, **how)
        mean = of_beams.log_probability / of_beams.tokens  # with a penalty of 1
        np.testing.assert_allclose(mean, out.sequences_scores.item(), rtol=1e-4)
    assert [each.text for each in found] == texts and len(set(texts)) > 3, texts
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
    found = write(run, run.trainable, run.task.prompts(split))
    assert [each.text for each in found] == [text.strip() for text in texts]
    assert len(set(texts)) > 2, texts
    with pytest.raises(UserError, match=r"task\.languages: 'en' is not known.*en_XX"):
        examples_of(Seq2Seq(languages=("en", "zh_CN")), rows, tmp_path)
