"""Chats: what the assistant says is what transformers says it is, whatever the template."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ftjax.config import default_config
from ftjax.data import chat_tokens as texts
from ftjax.data.encode import encode
from ftjax.data.templates import PLAIN
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.runs.announce import announced
from ftjax.setup.splits import Data
from ftjax.tasks.instruction import Instruction
from tests.conftest import WORDS
from tests.tasks.small_models import (
    SmallModel,
    batches,
    examples_of,
    split_of,
    write_trained,
    write_words,
)

# As the models' own, with {% generation %} around what the assistant says, to its end.
START = "{% generation %}"
END = "{% endgeneration %}"
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nbe good<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "START{{ m['content'] + '<|im_end|>' }}END{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\n\n' }}{% if m['role'] == 'assistant' %}"
    "START{{ m['content'] | trim + '<|eot|>' }}END{% else %}{{ m['content'] | trim + '<|eot|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "START{{ ' ' + m['content'] + ' ' + eos_token }}END{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "START{{ ' ' + m['content'] + eos_token }}END{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<start_of_turn>model\n' }}START{{ m['content'] | trim + '<end_of_turn>' }}END{{ '\n' }}"
    "{% else %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "mistral": MISTRAL,
    "gemma": GEMMA,
}
SIGNS = [
    "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "[INST]", "[/INST]",
    "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
TASK = Instruction()


def encoded(tokenizer, chat, template, which="all"):
    examples = texts.encode_chats(tokenizer, [(0, chat)], lambda chat: chat, template, which)
    return [(each.ids, each.learned) for each in examples]


def chats(count, seed=0, system=False):
    """Of one to three questions."""
    random = np.random.default_rng(seed)

    def said():
        return " ".join(random.choice(WORDS, int(random.integers(1, 6))))

    found = []
    for _ in range(count):
        turns = [{"role": "system", "content": said()}] * system
        for _ in range(int(random.integers(1, 4))):
            turns.append({"role": "user", "content": said()})
            turns.append({"role": "assistant", "content": said()})
        found.append({"messages": turns})
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    texts = [" ".join(WORDS), "system\nuser\nassistant\nmodel\n\n"] * 3
    return load_tokenizer(write_trained(folder, "bpe", texts, SIGNS))


@pytest.mark.parametrize("name", TEMPLATES)
def test_learned_tokens_equal_transformers(tokenizer, name):
    marked = TEMPLATES[name].replace("START", START).replace("END", END)
    plain = TEMPLATES[name].replace("START", "").replace("END", "")
    rows = chats(8, system=name in ("chatml", "llama3"))
    rows.append({"messages": [*rows[0]["messages"], {"role": "user", "content": "and so"}]})
    rows.append(
        {"messages": [*rows[0]["messages"][:-1], {"role": "assistant", "content": "é 中\n\nfilm"}]}
    )
    for row in rows:
        turns = row["messages"]
        wanted = tokenizer.apply_chat_template(
            turns, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
        )
        ((ids, learned),) = encoded(tokenizer, (turns, None), plain)
        ((same, within),) = encoded(tokenizer, (turns, None), marked)
        assert same == ids and within.tolist() == wanted["assistant_masks"]
        assert ids == wanted["input_ids"]
        assert learned.tolist() == wanted["assistant_masks"], tokenizer.decode(ids)
        said = tokenizer.decode([i for i, own in zip(ids, learned, strict=True) if own])
        count = sum(turn["role"] == "assistant" for turn in turns)
        signs = [s for s in (*SIGNS, "</s>") if said.endswith(s)]
        assert signs and said.count(signs[0]) == count
        ((ids, last),) = encoded(tokenizer, (turns, None), plain, "last")
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        said = tokenizer.decode([i for i, own in zip(ids, last, strict=True) if own])
        assert said.strip() == answers[-1] + " " * (name == "llama2") + signs[0]
        ((same, within),) = encoded(tokenizer, (turns, None), marked, "last")
        assert same == ids and within.tolist() == last.tolist()
    first = next(turn for turn in turns if turn["role"] == "assistant")
    one = [{**turn, "weight": 0} if turn is first else turn for turn in turns]
    ((_, whole),) = encoded(tokenizer, (turns, None), marked)
    ((_, rest),) = encoded(tokenizer, (one, None), marked)
    assert rest.sum() < whole.sum() and (rest <= whole).all()


def test_marks_decide_what_is_learned(tokenizer):
    """Also where they leave out what ends a turn, or a turn of the assistant is not marked."""
    marked = "{% for m in messages %}" + "{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}"
    marked += "{% generation %}{{ m['content'] }}{%- endgeneration %}{% else %}{{ m['content'] }}"
    marked += "{% endif %}{{ '\n' }}{% endfor %}"
    turns = chats(1, seed=3)[0]["messages"]
    ((ids, learned),) = encoded(tokenizer, (turns, None), marked)
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    said = tokenizer.decode([i for i, own in zip(ids, learned, strict=True) if own])
    assert "".join(said.split()) == "".join("".join(answers).split())
    first = marked.replace("== 'assistant' %}{% gen", "== 'assistant' and loop.last %}{% gen")
    several = encoded(tokenizer, (turns, None), first)  # each turn as it is the last
    assert len(several) in (1, len(answers))
    with pytest.raises(ValueError, match="turn 2 of the assistant is not within"):
        other = marked.replace("== 'assistant'", "== 'tool'")
        encoded(tokenizer, (turns, None), other)


def test_plain_template_by_hand(tokenizer):
    turns = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "bad film"}]
    ((ids, learned),) = encoded(tokenizer, (turns, None), "plain")
    assert tokenizer.decode(ids) == "user: good</s>\nassistant: bad film</s>\n"
    said = [i for i, own in zip(ids, learned, strict=True) if own]
    assert tokenizer.decode(said) == " bad film</s>"
    before = tokenizer.apply_chat_template(
        turns[:1], chat_template=PLAIN, tokenize=False, add_generation_prompt=True
    )
    read = tokenizer(before, add_special_tokens=False)["input_ids"]
    assert read == ids[: len(read)]  # what is gone on from is what was learned from
    spaced = PLAIN.replace("}}:{{ ' ' +", "}}: {{").replace("assistant:", "assistant: ")
    ((ids, learned),) = encoded(tokenizer, (turns, None), spaced)
    said = [i for i, own in zip(ids, learned, strict=True) if own]
    assert tokenizer.decode(said) == " bad film</s>"  # " bad" is one token


def test_templates_that_ask_for_other_turns_are_refused(tokenizer):
    chat = chats(1, seed=2)[0]["messages"] * 2, None
    counted = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="turn 2 is not written by the chat template as it asks"):
        list(encoded(tokenizer, chat, counted))
    with pytest.raises(UserError, match="no chat template: set task.template"):
        list(encoded(tokenizer, chat, ""))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages[7]['content'] }}", "has no element 7"),
        ("{{ 'a' * 10 ** 13 }}", "MemoryError"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "not done within 0.5 seconds",
        ),
    ],
)
def test_templates_that_fail_are_said_with_the_row(tmp_path, monkeypatch, template, message):
    monkeypatch.setattr("ftjax.data.templates.SECONDS", 0.5)
    folder, task = write_words(tmp_path, eos="[SEP]"), Instruction(template=template)
    said = f"rows.jsonl: row 1: the chat template says: .*{message}"
    with pytest.raises(UserError, match=said):
        examples_of(task, [FORMS["openai"]], folder)


FORMS = {
    "openai": {
        "messages": [
            {"role": "user", "content": "good\n\nfilm"},
            {"role": "assistant", "content": "bad"},
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "good\n\nfilm"},
            {"from": "gpt", "value": "bad"},
        ]
    },
    "alpaca": {"instruction": "good", "input": "film", "output": "bad"},
    "pairs": {"prompt": "good\n\nfilm", "completion": "bad"},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows_give_the_same(tmp_path, form):
    folder, task = write_words(tmp_path, eos="[SEP]"), Instruction(template="plain")
    _, _, wanted = examples_of(task, [FORMS["openai"]], folder)
    split, _, found = examples_of(task, [FORMS[form]], folder)
    np.testing.assert_array_equal(found.ids.values, wanted.ids.values)
    np.testing.assert_array_equal(found.tokens["learned"], wanted.tokens["learned"])
    assert found.tokens["learned"].any()
    assert task.prompts(split) == [[{"role": "user", "content": "good\n\nfilm"}]]
    assert task.references(split) == [["bad"]]


def test_alpaca_and_system_turns():
    rows = [
        {"instruction": "good", "input": "", "output": "bad"},
        {"instruction": "good", "output": "bad", "system": "film"},
    ]
    for row, wanted in zip(rows, ([], [{"role": "system", "content": "film"}]), strict=True):
        said = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "bad"}]
        assert split_of(TASK, [row]).column("messages") == [[*wanted, *said]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "the chat has no turn of the assistant"),
        ({"instruction": "a", "input": "b"}, "the chat has no turn of the assistant"),
        ({"messages": []}, "a row needs messages, or a prompt and a completion"),
        ({"messages": "a"}, "field 'messages' must be a list of turns"),
        (
            {"messages": [{"role": "x", "content": "a"}]},
            "turn 1: role 'x' must be one of system, user",
        ),
        ({"messages": [{"role": "user", "content": " "}]}, "turn 1: content must be text, not ' '"),
        ({"messages": [{"role": "user"}]}, "turn 1: content must be text, not None"),
        ({"messages": ["a"]}, "turn 1 must have a role and a content, not 'a'"),
        ({"messages": None}, "a row needs messages, or a prompt and a completion"),
        ({"prompt": "", "completion": "b"}, "a row needs messages, or a prompt and a completion"),
    ],
)
def test_bad_chats_are_named(row, message):
    with pytest.raises(UserError, match=f"rows.jsonl: row 2.*{message}"):
        split_of(TASK, [chats(1)[0], row])
    if "messages" not in row:
        with pytest.raises(UserError, match="row 1: a row needs messages, or a prompt"):
            split_of(TASK, [{"prompt": None, "text": "a"}])


def test_conversations_of_another_form_are_named():
    with pytest.raises(UserError, match="row 1: field 'messages' must be a list of"):
        split_of(TASK, [{"conversations": "a"}])
    with pytest.raises(UserError, match="row 1: field 'messages' turn 1: role 'alien'"):
        split_of(TASK, [{"conversations": [{"from": "alien", "value": "a"}]}])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_words(tmp_path_factory.mktemp("instruction"), eos="[SEP]")
    return SmallModel.of(Instruction(template="plain"), "llama", "causal_lm", folder), folder


def test_loss_equals_torch_packed_and_padded(made):
    made, folder = made
    rows = chats(9, seed=1)
    split, names, examples = examples_of(made.task, rows, folder, 48)
    learned, total, count = examples.tokens["learned"], 0.0, 0
    for number in range(len(examples)):
        ids = torch.tensor(examples.ids[number][None]).long()
        own = torch.tensor(learned[slice(*examples.ids.offsets[number : number + 2])])[None]
        with torch.no_grad():
            logits = made.theirs(input_ids=ids).logits[0, :-1]
        labels = torch.where(own > 0, ids, -100)[0, 1:]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels >= 0).sum())
    for packed in (False, True):
        np.testing.assert_allclose(
            made.sums(batches(examples, 4, packed)), total / count, rtol=1e-5
        )
    scores = made.task.score(made.outputs(examples, True), examples, split, names)
    np.testing.assert_allclose(scores["loss"], total / count, rtol=1e-5)
    assert scores["tokens"] == count


def test_chats_that_are_cut_before_an_answer_are_left_out(made):
    folder = made[1]
    long = [{"role": "user", "content": "good " * 60}, {"role": "assistant", "content": "bad"}]
    rows = [*chats(2), {"messages": long}, *chats(1, seed=4)]
    split, _, examples = examples_of(made[0].task, rows, folder, 40)
    assert examples.row_numbers.tolist() == [0, 1, 3]
    run = SimpleNamespace(config=default_config("lora", "instruction"), absent=())
    run.tuned = SimpleNamespace(shapes={}, partition=SimpleNamespace(counts=lambda _: (1, 2)))
    run.tuned.base = SimpleNamespace(shapes={})
    said = "\n".join(announced(run, Data({"train": split}, {"train": examples}, (), []), 1, [], 0))
    assert "train: 1 rows give no example" in said
    unanswered = [{"messages": long[:1]}, {"messages": [{"role": "user", "content": "good"}]}]
    split = split_of(TASK, unanswered, TASK.schema.to_predict())
    assert len(encode(split, made[0].task, folder, 40)) == 2  # to be predicted
    assert made[0].task.references(split) == [[], []]
