"""Tools, calls, thoughts and weights of chats; templates that are several, raise, or forget."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ftjax.data.encode import encode, unreadable
from ftjax.data.sources import load
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.generation.prompts import PromptEncoder
from ftjax.tasks.instruction import Instruction
from ftjax.tasks.preference import Preference
from tests.conftest import WORDS, data_settings, write_jsonl
from tests.tasks.small_models import write_trained

SIGNS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tools>", "<call>"]
CHATML = (
    "{% if tools %}<tools>{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls %}<call>{{ call.function | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen 3's: thoughts of turns before the last question are taken out, the last turn has some.
FORGETS = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>"
    "{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek R1's: an answer is asked for with its thoughts begun, and written without; arguments
# are put as text.
BEGINS = (
    "{% for m in messages %}{% if m.role != 'assistant' %}{{ '<|im_start|>' + m.role + '\n' + "
    "m.content }}<|im_end|>{% else %}<|im_start|>assistant\n{% generation %}{{ (m.content or '')"
    ".split('</think>')[-1] }}{% for c in m.tool_calls %}{{ '<call>' + c.function.name + ' ' + "
    "c.function.arguments }}{% endfor %}<|im_end|>{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# As Llama 3's: a date, and turns that call have no content.
DATED = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% generation %}{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}{% endfor %}{% else %}{{ m.content | trim }}{% endif %}"
    "<|im_end|>{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "film", "parameters": {"type": "object"}}}]


def call(**arguments):
    return [{"type": "function", "function": {"name": "film", "arguments": arguments}}]


USER, TOOL = {"role": "user", "content": "good film"}, {"role": "tool", "content": "fine"}
ROWS = [
    {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": call(name="x", year=None)},
            {**TOOL, "tool_call_id": "7", "name": "film"},
            {"role": "assistant", "content": "bad", "reasoning_content": "so so"},
        ],
        "tools": TOOLS,
    },
    {"messages": [USER, {"role": "assistant", "content": "the plot", "tool_calls": call(year=1)}]},
    {
        "messages": [
            USER,
            {"role": "assistant", "content": "dull", "weight": 0},
            USER,
            {"role": "assistant", "content": "lovely", "weight": 1},
        ],
        "tools": None,
    },
    {"messages": [USER, {"role": "assistant", "tool_calls": call()}], "tools": json.dumps(TOOLS)},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = [" ".join(WORDS), 'system\nuser\nassistant\nnone{"name": "film"}'] * 3
    return write_trained(tmp_path_factory.mktemp("chats"), "bpe", texts, SIGNS)


def with_templates(folder, templates, tmp_path):
    """The folder's tokenizer with chat templates."""
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, load_tokenizer(tmp_path)


def examples_of(task, rows, folder, tmp_path, name="instruction"):
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    split = load(data_settings(name, path=str(file)), task.schema)["train"]
    return split, encode(split, task, folder, 512)


def learned(examples, number, tokenizer):
    """What is learned of an example, as text."""
    part = slice(*examples.ids.offsets[number : number + 2])
    return tokenizer.decode(examples.ids[number][examples.tokens["learned"][part] > 0])


def theirs(tokenizer, row, count=None, **options):
    tools = row.get("tools")
    turns = [{k: v for k, v in turn.items() if k != "weight"} for turn in row["messages"]]
    tools = json.loads(tools) if isinstance(tools, str) else tools
    text = tokenizer.apply_chat_template(turns[:count], tools=tools, tokenize=False, **options)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def test_templates_get_all_that_a_row_says(folder, tmp_path):
    folder, tokenizer = with_templates(folder, CHATML, tmp_path / "model")
    split, examples = examples_of(Instruction(), ROWS, folder, tmp_path)
    for number, row in enumerate(ROWS):
        assert examples.ids[number].tolist() == theirs(tokenizer, row)[1]
    said = [learned(examples, number, tokenizer) for number in range(len(ROWS))]
    calls = [
        f"<call>{json.dumps(turn['tool_calls'][0]['function'])}"
        for row in ROWS
        for turn in row["messages"]
        if "tool_calls" in turn
    ]
    end = "<|im_end|>"
    assert said == [
        f"{calls[0]}{end}<think>so so</think>bad{end}",
        f"the plot{calls[1]}{end}",
        f"lovely{end}",  # the turn of weight 0 is read, not learned
        f"{calls[2]}{end}",
    ]
    assert Instruction().references(split) == [["bad"], ["the plot"], ["lovely"], []]
    encoder = PromptEncoder(tokenizer)
    for row, asked in zip(ROWS, Instruction().prompts(split), strict=True):
        wanted = theirs(tokenizer, row, -1, add_generation_prompt=True)[1]
        assert encoder.ids(asked) == wanted


def test_tools_of_some_rows_or_none(tmp_path):
    for given, wanted in (([[], None, ""], None), ([None, [], TOOLS], ["", "", json.dumps(TOOLS)])):
        rows = [{**ROWS[2], "tools": tools} for tools in given] + [ROWS[1]]
        file = write_jsonl(tmp_path / "train.jsonl", rows)
        split = load(data_settings("instruction", path=str(file)), Instruction().schema)["train"]
        found = split.column("tools") if split.has(["tools"]) else None
        assert found == (None if wanted is None else [*wanted, ""])


def test_sharegpt_s_turns_keep_what_they_have(folder, tmp_path):
    folder, tokenizer = with_templates(folder, CHATML, tmp_path / "model")
    said = [("human", "good", None), ("gpt", "bad", 0), ("human", "so", None), ("gpt", "dull", 1)]
    turns = [{"from": role, "value": text, "weight": weight} for role, text, weight in said]
    _, examples = examples_of(Instruction(), [{"conversations": turns}], folder, tmp_path)
    assert learned(examples, 0, tokenizer) == "dull<|im_end|>"


def test_preferences_with_tools(folder, tmp_path):
    folder, tokenizer = with_templates(folder, CHATML, tmp_path / "model")
    answers = {"chosen": call(year=1), "rejected": call(name="x")}
    row = {name: [{"role": "assistant", "tool_calls": calls}] for name, calls in answers.items()}
    row |= {"prompt": [USER], "tools": TOOLS}
    _, examples = examples_of(Preference(), [row], folder, tmp_path, "preference")
    for number, name in enumerate(answers):
        whole = {"messages": [USER, *row[name]], "tools": TOOLS}
        assert examples.ids[number].tolist() == theirs(tokenizer, whole)[1]


def test_several_templates(folder, tmp_path):
    several = {"default": FORGETS, "tool_use": CHATML, "other": CHATML.replace("\n", " ")}
    folder, tokenizer = with_templates(folder, several, tmp_path / "model")
    rows = [ROWS[3], {"messages": ROWS[0]["messages"][2:4]}]
    _, examples = examples_of(Instruction(), rows, folder, tmp_path)
    for number, row in enumerate(rows):
        assert examples.ids[number].tolist() == theirs(tokenizer, row)[1]
    _, examples = examples_of(Instruction(template="other"), rows, folder, tmp_path)
    wanted = theirs(tokenizer, rows[1], chat_template="other")[1]
    assert examples.ids[1].tolist() == wanted
    with pytest.raises(UserError, match="task.template: the tokenizer's templates are other"):
        folder, _ = with_templates(folder, {"other": CHATML}, tmp_path / "none")
        examples_of(Instruction(), rows, folder, tmp_path)


def test_each_turn_is_learned_as_it_is_written_last(folder, tmp_path):
    folder, tokenizer = with_templates(folder, FORGETS, tmp_path / "model")
    turns = [USER, {"role": "assistant", "content": "bad", "reasoning_content": "so so"}] * 3
    rows = [{"messages": turns}, {"messages": turns[:2]}]
    _, examples = examples_of(Instruction(), rows, folder, tmp_path)
    assert examples.row_numbers.tolist() == [0, 0, 0, 1]
    for number, count in enumerate((2, 4, 6, 2)):
        assert examples.ids[number].tolist() == theirs(tokenizer, rows[0], count)[1]
        assert learned(examples, number, tokenizer) == "<think>so so</think>bad<|im_end|>"
    _, last = examples_of(Instruction(turns="last"), rows, folder, tmp_path)
    assert [x.tolist() for x in map(last.ids.__getitem__, range(2))] == [
        examples.ids[i].tolist() for i in (2, 3)
    ]
    np.testing.assert_array_equal(last.row_numbers, [0, 1])
    with pytest.raises(UserError, match="task.turns='first' must be one of all, last"):
        Instruction(turns="first")


def masked(tokenizer, messages):
    """What transformers gives of a chat, and what it marks in it."""
    found = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = np.array(found["input_ids"]), np.array(found["assistant_masks"], bool)
    return ids.tolist(), tokenizer.decode(ids[mask])


def test_thoughts_that_are_asked_for_need_not_be_answered(folder, tmp_path):
    folder, tokenizer = with_templates(folder, BEGINS, tmp_path / "model")
    arguments = {"form": "so so", "year": 1}
    calls, text = call(**arguments), call(**arguments)
    text[0]["function"]["arguments"] = json.dumps(arguments)
    answers = [[{"content": "bad"}, {"content": " dull\n"}], [{"content": "", "tool_calls": text}]]
    rows = [
        {"messages": [each for x in answer for each in (USER, {"role": "assistant", **x})]}
        for answer in answers
    ]
    objects = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": calls}]}
    _, examples = examples_of(Instruction(), [*rows, objects], folder, tmp_path)
    for number, row in enumerate([*rows, rows[1]]):
        wanted = masked(tokenizer, row["messages"])
        assert (examples.ids[number].tolist(), learned(examples, number, tokenizer)) == wanted


def test_dates_and_calls_with_text_arguments(folder, tmp_path):
    folder, tokenizer = with_templates(folder, DATED, tmp_path / "model")
    text = call()
    text[0]["function"]["arguments"] = '{"year": 1}'
    rows = [
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": calls}]}
        for calls in (call(year=1), text)
    ]
    split, examples = examples_of(Instruction(), rows, folder, tmp_path)
    today, _ = theirs(tokenizer, rows[0])
    trained = tokenizer.decode(examples.ids[0])
    assert trained == "26 Jul 2024" + today[len("26 Jul 2024") :]  # on whatever day
    assert examples.ids[1].tolist() == examples.ids[0].tolist()
    assert learned(examples, 1, tokenizer) == '<call>film {"year": 1}<|im_end|>'
    encoder = PromptEncoder(tokenizer)
    asked = theirs(tokenizer, rows[0], -1, add_generation_prompt=True)[1]
    assert encoder.ids(Instruction().prompts(split)[0]) == asked  # with today's


def test_commands_to_a_template_need_not_be_written(folder, tmp_path):
    commanded = CHATML.replace("{{ m.content }}", "{{ m.content.replace('/no_think', '') }}")
    folder, tokenizer = with_templates(folder, commanded, tmp_path / "model")
    told = {"role": "system", "content": "so so /no_think"}
    row = {"messages": [told, USER, {"role": "assistant", "content": "bad a/b, or /c"}]}
    _, examples = examples_of(Instruction(), [row], folder, tmp_path)
    assert examples.ids[0].tolist() == theirs(tokenizer, row)[1]


def test_thoughts_by_any_name(folder, tmp_path):
    folder, tokenizer = with_templates(folder, CHATML, tmp_path / "model")
    for name in ("reasoning_content", "reasoning", "thinking"):
        row = {"messages": [USER, {"role": "assistant", "content": "bad", name: "so so"}]}
        _, examples = examples_of(Instruction(), [row], folder, tmp_path)
        assert examples.ids[0].tolist() == theirs(tokenizer, row)[1]
        assert learned(examples, 0, tokenizer) == "<think>so so</think>bad<|im_end|>"


@pytest.mark.parametrize("template", ["chatml", "model/chat_template.jinja"])
def test_words_are_no_template(folder, tmp_path, template):
    folder, _ = with_templates(folder, CHATML, tmp_path / "model")
    with pytest.raises(UserError, match="is neither a template in Jinja nor the name of one"):
        examples_of(Instruction(template=template), [ROWS[2]], folder, tmp_path)


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        (DATED, ROWS[1], "turn 2: the chat template leaves out 'the plot'"),
        (
            BEGINS,
            {"messages": [USER, {"role": "assistant", "content": "<think>so</think>bad"}]},
            "turn 2: the chat template leaves out '<think>so</think>bad'",
        ),
        (
            CHATML.replace("m.content %}", "m.role != 'user' %}"),
            {"messages": ROWS[2]["messages"]},
            "turn 1: the chat template leaves out 'good film'",
        ),
        (STRICT + CHATML, {"messages": ROWS[2]["messages"][1:]}, "begin with the user"),
        (
            "{% for m in messages %}{{ m.content + 1 }}{% endfor %}",
            ROWS[2],
            "the chat template says",
        ),
        (FORGETS, ROWS[1], "turn 2 has 'tool_calls', which the chat template leaves out"),
        (FORGETS, {**ROWS[2], "tools": TOOLS}, "has tools, which the chat template leaves out"),
        (
            CHATML,
            {"messages": [USER, {"role": "assistant", "content": "a", "weight": 2}]},
            "weight",
        ),
        (
            CHATML,
            {"messages": ROWS[2]["messages"][:2]},
            "all of the assistant's turns have weight 0",
        ),
        (CHATML, {**ROWS[2], "tools": "film"}, "must be a list of tools"),
        (CHATML, {"messages": [USER, {"role": "assistant", "content": None}]}, "must be text"),
    ],
)
def test_rows_that_cannot_be_written_are_named(folder, tmp_path, template, row, message):
    folder, _ = with_templates(folder, template, tmp_path / "model")
    good = row if "+ 1" in template or "'user' %}{{ m" in template else ROWS[2]
    good = {"messages": good["messages"]}
    with pytest.raises(UserError, match=rf"train\.jsonl: row [12]: .*{message}"):
        examples_of(Instruction(), [good, row], folder, tmp_path)


def test_rows_that_cannot_be_written_are_found(folder, tmp_path):
    """All of them, so that predictions go on with the others."""
    folder, _ = with_templates(folder, STRICT + CHATML, tmp_path / "model")
    bad = {"messages": ROWS[2]["messages"][1:]}
    file = write_jsonl(tmp_path / "train.jsonl", [{"messages": ROWS[2]["messages"]}, bad, bad])
    settings = data_settings("instruction", path=str(file), prepare=())
    split = load(settings, Instruction.schema)["train"]
    why = unreadable(split, Instruction(), folder, 256)
    assert set(why) == {1, 2} and "train.jsonl: row 3: " in why[2]
    assert "begin with the user" in why[2]
    rest = replace(split, rows=split.rows.select([0]))
    assert unreadable(rest, Instruction(), folder, 256) == {}
