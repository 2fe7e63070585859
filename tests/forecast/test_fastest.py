"""The search for a layout, over a machine of which all is made up; and layouts that are known."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftjax.commands import compile as compile_command
from ftjax.config.load import load_config
from ftjax.errors import UserError
from ftjax.forecast import fastest, layouts, mend
from ftjax.forecast.chips import CHIPS
from ftjax.forecast.kept import KEPT, ORDER, device_tokens, kept_bytes
from ftjax.forecast.lowering import abstract_recipe
from ftjax.parallel.mesh import AXES
from tests.forecast.abstract import LENGTH, ROWS, config_of, write_config

GIB = 2**30
LAYERS, WIDE, NARROW = 3, 2 * 128, 64 + 32 + 32 + 64  # features that products of a layer give
MEMORY = {"none": 30, "dots": 20, "dots_context": 15.0, "narrow_context": 8, "context": 4}


@pytest.fixture
def llama(tmp_path):
    return write_config(tmp_path)


def test_bytes_kept_by_hand(llama):
    """What projections give but the last, a layer's input, and what attention gives."""
    model = abstract_recipe(config_of(llama, "lora")).tuned
    tokens = 10.0
    wanted = {"full": 64, "context": 64 + 64, "narrow_context": 64 + NARROW + 64}
    wanted |= {"dots_no_batch": 64 + NARROW + WIDE, "dots_context": 64 + NARROW + WIDE + 64}
    for policy, features in wanted.items():
        assert kept_bytes(model, policy, tokens) == LAYERS * features * tokens * 2, policy
    kept = [kept_bytes(model, policy, tokens) for policy in ORDER]
    assert kept == sorted(kept, reverse=True) and set(KEPT) | {"none"} == {*ORDER, "offload"}
    config = config_of(llama, "lora", mesh_data=2, mesh_fsdp=-1, train_accumulation=2)
    assert device_tokens(config, 8) == ROWS * LENGTH / 8 / 2


class Machine:
    """Forecasts that come from formulas, and how many were asked for."""

    def __init__(self):
        self.asked, self.near = [], []
        self.start, self.saved = 15.0, {}  # GiB of all parameters; seconds by copies of them

    def __call__(self, config, topology, slices=1, quick=False):
        settings = config.model
        self.asked.append((settings.remat, settings.parts))
        self.near.append(tuple(config.mesh.near))
        if config.mesh.tensor > 1:
            raise UserError("heads do not divide")
        policies = (settings.remat,) if isinstance(settings.remat, str) else settings.remat
        size = MEMORY.get(policies[0], 2) + 0.1 * (len(policies) - 1)
        seconds = {"none": 7, "dots_context": 8, "narrow_context": 9}.get(policies[0], 10)
        seconds -= 0.3 * (settings.parts == 4) + 0.2 * bool(settings.whole)
        seconds += settings.attention_fused - 0.1 * (len(policies) - 1)
        mesh = {axis: config.mesh[axis] for axis in AXES}
        mesh["fsdp"] = 4 // mesh["data"] if mesh["fsdp"] == -1 else mesh["fsdp"]
        mesh["data"] = 4 // mesh["fsdp"] if mesh["data"] == -1 else mesh["data"]
        seconds -= 1.5 * settings.sparse_cores  # of gathers, which are then beside computation
        seconds -= self.saved.get(mesh["data"], 0) + 0.05 * (config.mesh.near == ("data",))
        memory = {name: size * GIB for name in ("sum", "resume")}
        return {
            "chips": 4,
            "mesh": mesh,
            "fits": size <= 16,
            "memory": memory | {"start": self.start * GIB / mesh["fsdp"]},
            "chip_memory": 16 * GIB,
            "predicted": {"seconds": seconds},
        }


@pytest.fixture
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    made_up = Machine()
    for module in (fastest, mend):
        monkeypatch.setattr(module, "forecast", made_up)
    monkeypatch.setattr(fastest, "topology_devices", lambda *_: (CHIPS["v5e"], []))
    monkeypatch.setattr(fastest, "version", lambda name: name)
    return made_up


def test_the_fastest_of_what_fits_is_found_and_kept(llama, machine):
    config, said = config_of(llama, "lora", model_segments="scan"), []
    found = fastest.fastest(config, "v5e:2x2", say=said.append)
    assert found.changes["model.remat"] == "dots_context"  # the first that fits
    assert found.changes["model.parts"] == 4 and found.changes["model.whole"]
    assert "model.attention_fused" not in found.changes
    assert found.seconds == pytest.approx(8 - 0.3 - 0.2) and len(said) == len(machine.asked)
    assert any("heads do not divide" in line for line in said)
    asked = len(machine.asked)
    again = fastest.fastest(config, "v5e:2x2", say=said.append)
    assert again == found and len(machine.asked) == asked  # nothing is compiled again
    file = Path(config.model.path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 1e-4}))
    fastest.fastest(config, "v5e:2x2", say=said.append)
    assert len(machine.asked) > asked  # of another model in the same place


def test_copies_of_the_parameters_are_tried_where_there_is_memory(llama, machine):
    config, machine.start, machine.saved = config_of(llama, "lora"), 12.0, {4: 2}
    found = fastest.fastest(config, "v5e:2x2", say=lambda _: None)
    assert (found.changes["mesh.data"], found.changes["mesh.fsdp"]) == (-1, 1)
    assert found.seconds == pytest.approx(8 - 0.3 - 2) and "model.whole" not in found.changes
    assert not any(machine.near)  # of one axis there is no order


def test_chips_cut_along_two_axes_are_neighbours_along_either(llama, machine):
    config, machine.start, machine.saved = config_of(llama, "lora"), 0.2, {2: 2}
    found = fastest.fastest(config, "v5e:2x2", say=lambda _: None)
    assert found.changes["mesh.data"] == 2 and found.changes["mesh.near"] == ("data",)
    assert found.seconds == pytest.approx(8 - 0.3 - 0.2 - 2 - 0.05)


@pytest.mark.parametrize("kind", ["TPU v6 lite", "TPU v5 lite"])
def test_sparse_cores_are_tried_where_there_are_any(llama, machine, monkeypatch, kind):
    found = (CHIPS["v5e"], [SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(fastest, "topology_devices", lambda *_: found)
    best = fastest.fastest(config_of(llama, "lora"), "v5e:2x2", say=lambda _: None)
    assert best.changes.get("model.sparse_cores", False) == (kind == "TPU v6 lite")


def test_a_search_stops_when_its_time_is_over(llama, machine):
    config = config_of(llama, "lora", model_segments="scan")
    found = fastest.fastest(config, "v5e:2x2", minutes=0.0, say=lambda _: None)
    assert found.fits and len(machine.asked) == 1  # which keeps all products


def test_what_cannot_fit_is_not_compiled(llama, machine):
    config = config_of(llama, "lora", data_max_length=64, train_batch_size=1_000_000)
    fastest.fastest(config, "v5e:2x2", say=lambda _: None)
    # 16 million tokens a chip: 192 features and more of three layers are more than 16 GiB.
    assert not {"none", "dots", "dots_context"} & {remat for remat, _ in machine.asked[:1]}


def test_where_nothing_is_computed_again_the_least_of_it_is_advised(llama, machine):
    """Not all of it, where keeping products fits."""
    config = config_of(llama, "lora", model_remat="none", mesh_fsdp=-1, mesh_data=1)
    words, figures = mend.mended(config, "v5e:2x2", 1, lambda _: None)
    assert words == "--config.model.remat=dots_context" and figures["fits"]


ROW = {
    "model": "small",
    "tokens_per_chip": 64,
    "seconds": 0.5,
    "versions": "jax 1",
    "changes": {"model.remat": "context", "mesh.fsdp": -1, "mesh.data": 1},
}


@pytest.mark.parametrize(
    ("kind", "changes", "remat", "why"),
    [
        (
            "TPU v5 lite",
            {},
            "context",
            "the fastest compiled for small with lora on 4 chips of v5e",
        ),
        ("TPU v5 lite", {"train_batch_size": 64}, "none", "for so many tokens a chip"),
        ("TPU v4", {}, "none", "for this model and method on 4 chips of v4"),
        ("cpu", {}, "none", "none is known for cpu"),
    ],
)
def test_a_known_layout_is_taken_and_why(llama, monkeypatch, tmp_path, kind, changes, remat, why):
    config = config_of(llama, "lora", **changes)
    table = tmp_path / "layouts.json"
    table.write_text(json.dumps([ROW | {"for": layouts.describe(config, "v5e", 4)}]))
    monkeypatch.setattr(layouts, "TABLE", table)
    devices = [SimpleNamespace(device_kind=kind)] * 4
    found, reason = layouts.with_known_layout(config, devices)
    assert found.model.remat == remat and why in reason
    assert config.model.remat == "none"


def test_the_table_is_of_keys_that_there_are(llama):
    for row in json.loads(layouts.TABLE.read_text()):
        config = config_of(llama, row["for"]["method"])
        layouts.changed(config, list(layouts._settings(row).items()))
        assert row["tokens_per_chip"] > 0 and row["seconds"] > 0


ASKED = {"topology": "v5e:2x2", "slices": 1, "quick": False, "price": None, "output": None}
ASKED |= {"fastest": True, "minutes": 10.0, "page": None}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"quick": True}, "--fastest is of times, of which --quick says nothing"),
        ({"minutes": 0.0}, "--minutes 0.0 must be positive"),
        ({"fastest": False, "page": Path("page.py")}, "--page is of what --fastest finds"),
        ({"page": Path("page.yaml")}, "--page page.yaml: a page of Python ends in .py"),
    ],
)
def test_what_a_search_is_not_asked(llama, monkeypatch, asked, said):
    monkeypatch.setattr(compile_command, "load_page", lambda *_: config_of(llama, "lora"))
    with pytest.raises(UserError, match=said):
        compile_command.run(SimpleNamespace(**ASKED | asked), [])


def test_the_page_gives_the_layout(llama, machine, monkeypatch, tmp_path, capsys):
    """And the search's figures are those of the forecast."""
    config, page = config_of(llama, "lora", model_segments="scan"), tmp_path / "page.py"
    monkeypatch.setattr(compile_command, "load_page", lambda *_: config)
    arguments = SimpleNamespace(**ASKED | {"page": page})
    figures = compile_command._fastest(config, arguments)
    written = load_config(str(page), [])
    assert (written.model.remat, written.model.parts) == ("dots_context", 4)
    assert written.model.whole[:2] == ("key", "value") and written.model.path == config.model.path
    assert f"{1e3 * figures['predicted']['seconds']:,.1f} ms" in capsys.readouterr().out
