"""Zero-shot classification equals transformers' embeddings and cosines."""

import json

import torch
import transformers
from sklearn.metrics.pairwise import cosine_similarity

from ftjax.formats.folder import locate
from tests.conftest import here, write_jsonl

TEXTS = {
    "great": ["a wonderful, moving film", "i loved every minute of it", "superb acting"],
    "terrible": ["a boring waste of time", "the worst movie of the year", "awful and dull"],
}
TEMPLATES = ("{label}", "the film was {label}.", "zebra {label} quantum")


def embed(texts):
    folder = locate("minilm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state.numpy()
    mask = inputs["attention_mask"].numpy()[..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


def test_chooses_on_validation_and_scores_as_the_reference(tmp_path):
    rows = [{"text": t, "label": label} for label, texts in TEXTS.items() for t in texts]
    corpus = tmp_path / "corpus"
    for split in ("train", "validation", "test"):
        write_jsonl(corpus / f"{split}.jsonl", rows)
    config = tmp_path / "config.py"
    config.write_text(
        "from ftjax.config import default_config\n"
        "def get_config(method='prompting'):\n"
        "    config = default_config(method)\n"
        f"    config.data.path = {str(corpus)!r}\n"
        "    config.data.prepare, config.data.batching = (), 'pack'\n"
        f"    config.method.templates = {TEMPLATES!r}\n"
        "    return config\n"
    )
    work = tmp_path / "work"
    here("train", "--config", config, "--workdir", work)
    result = json.loads((work / "result.json").read_text())
    names, numbers = sorted(TEXTS), []
    texts = embed([row["text"] for row in rows])
    truth = [names.index(row["label"]) for row in rows]
    for template in TEMPLATES:
        labels = embed([template.replace("{label}", name) for name in names])
        guess = cosine_similarity(texts, labels).argmax(-1)
        numbers.append(float((guess == truth).mean()))
        assert result["templates"][template] == numbers[-1]
    assert result["templates"][result["template"]] == max(numbers)
    assert result["trainable_params"] == 0

    write_jsonl(tmp_path / "in.jsonl", [{"text": t} for t in TEXTS["terrible"]])
    out = tmp_path / "out.jsonl"
    here("predict", "--workdir", work, "--input", tmp_path / "in.jsonl", "--output", out)
    labels = embed([result["template"].replace("{label}", name) for name in names])
    guess = cosine_similarity(embed(TEXTS["terrible"]), labels).argmax(-1)
    found = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    assert found == [names[i] for i in guess]
