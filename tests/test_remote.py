"""Data, model and work folder in an object store, as an emulator of it serves them."""

import json
import logging
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus

import pytest
from etils import epath

from ftjax.config import load_config
from ftjax.errors import UserError
from ftjax.remote import copied, located, raised_once, text_of
from ftjax.runs.start import begin
from ftjax.workdir.lock import NAME, Holder, Lock
from ftjax.workdir.records import read_rows
from tests.conftest import environment, ftjax
from tests.forked import Forked

OVERRIDES = [
    "--config.train.steps=12",
    "--config.train.eval_every=4",
    "--config.train.checkpoint_every=2",
    "--config.train.log_every=1",
]


REFUSED = []  # what is in the names of objects that are not given


def _patch(monkeypatch):
    """What the emulator lacks: generations of objects, in answers and asked for, a newer method;
    and that it refuses objects."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    plain, insert = objects.download, objects.insert

    def once(request, response, storage, *rest):
        """With the condition that there be no such object yet."""
        meta = request.data.get("meta", {}) if isinstance(request.data, dict) else {}
        name = request.query.get("name", [meta.get("name")])[0]
        if request.query.get("ifGenerationMatch") == ["0"]:
            try:
                storage.get_file_obj(request.params["bucket_name"], name)
            except NotFound:
                pass
            else:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        insert(request, response, storage, *rest)

    def download(request, response, storage, *_):
        if any(part in request.params["object_id"] for part in REFUSED):
            response.status = HTTPStatus.UNAUTHORIZED
            return
        plain(request, response, storage)
        if response.status in (200, 206):
            name = (request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = storage.get_file_obj(*name)["generation"]

    def move(request, response, storage, *_):
        request.params["dest_bucket_name"] = request.params["bucket_name"]
        objects.copy(request, response, storage)
        storage.delete_file(request.params["bucket_name"], request.params["object_id"])

    monkeypatch.setattr(objects, "download", download)
    path = r"^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)/moveTo/o/"
    routes = [(path + "(?P<dest_object_id>.+)$", {"POST": move})]
    for path, handlers in server.HANDLERS:
        mended = {plain: download, insert: once}
        handlers = {k: mended.get(v, v) for k, v in handlers.items()}
        routes.append((path, handlers))
    monkeypatch.setattr(server, "HANDLERS", tuple(routes))
    return server


@pytest.fixture
def bucket(monkeypatch):
    server = _patch(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    running.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
    yield epath.Path("gs://bucket")
    REFUSED.clear()
    running.stop()


def upload(folder, target):
    for file in folder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(folder)).write_bytes(file.read_bytes())


def test_a_killed_run_in_a_bucket_equals_a_local_one(
    bucket, shallow, corpus, config_file, tmp_path
):
    local, full = tmp_path / "local", str(config_file)
    config_file = f"{full}:lora"  # each array saved is a request or more
    ftjax("train", "--config", config_file, "--workdir", local, *OVERRIDES)
    upload(shallow, bucket / "tiny")
    upload(corpus, bucket / "corpus")
    workdir = bucket / "run"
    remote = [
        *("--workdir", str(workdir), *OVERRIDES),
        *(f"--config.model.path={bucket}/tiny", f"--config.data.path={bucket}/corpus"),
    ]
    process = Forked(["train", "--config", config_file, *remote], environment())
    while process.poll() is None and not (workdir / "checkpoints" / "4").exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.communicate()
    out = ftjax("train", "--config", config_file, *remote).stdout
    assert "resumed at step" in out
    results = [json.loads((folder / "result.json").read_text()) for folder in (local, workdir)]
    assert results[0]["metrics"] == results[1]["metrics"]
    rows = [[row.get("loss") for row in read_rows(f / "metrics.jsonl")] for f in (local, workdir)]
    assert rows[0] == rows[1]
    saving = workdir / "checkpoints" / "99.orbax-checkpoint-tmp" / "params" / "part"
    saving.write_bytes(b"of a save in progress")
    scores = ftjax("evaluate", "--workdir", workdir, "--split", "test").stdout
    assert saving.read_bytes() == b"of a save in progress"
    assert f"{results[0]['metrics']['test']['accuracy']:.4f}" in scores
    written = []
    for earlier, later in ((local, tmp_path), (workdir, bucket)):
        for _ in range(2):  # once more over what a run left that never came to train
            config = load_config(full, [f"--config.model.from_run={earlier}"])
            begin(config, later / "next")
        assert config.model.path == str(later / "next" / "start")
        written.append({f.name: f.read_bytes() for f in (later / "next" / "start").iterdir()})
    assert written[0] == written[1] and "model.safetensors" in written[0]
    # What a store refuses for a while is no damage
    (workdir / "result.json").unlink()
    before = {path.name for path in (workdir / "checkpoints").iterdir()}
    for part, said_of_it in (
        ("meta", "does not say that it is damaged"),
        ("config.json", "an obj"),
    ):
        REFUSED[:] = [part]
        error = ftjax("train", "--config", config_file, *remote, expect=2).stderr
        assert said_of_it in error and "HttpError: " in error and "Traceback" not in error
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == before


def test_a_copy_has_what_the_store_has_now(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path))
    folder = bucket / "model"
    (folder / "config.json").write_text("one")
    (folder / "generation_config.json").write_text("old")
    copy = copied(folder)
    assert {file.name: file.read_text() for file in copy.iterdir()} == {
        "config.json": "one",
        "generation_config.json": "old",
    }
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text("three")  # within a second, by a clock behind ours
    later = time.time() + 9
    os.utime(copy / "config.json", (later, later))
    assert copied(folder) == copy
    assert {file.name: file.read_text() for file in copy.iterdir()} == {"config.json": "three"}


def test_stores_log_as_before_in_a_process_that_is_not_a_command(bucket):
    loggers = [logging.getLogger(name) for name in ("gcsfs", "fsspec")]
    before = [logger.getEffectiveLevel() for logger in loggers]
    with raised_once():
        assert {logger.level for logger in loggers} == {logging.CRITICAL}
    located(f"{bucket}/file")
    assert [logger.getEffectiveLevel() for logger in loggers] == before < [logging.CRITICAL] * 2


def test_of_many_at_once_one_holds_a_folder(bucket):
    """Another is refused while it gives signs of life, and takes its place when it does not."""
    together = threading.Barrier(4, timeout=30)

    def one(_):
        together.wait()
        try:
            with Lock(bucket / "run", beat=0.05, stale=1.0) as lock:
                together.wait()
                lock.check()
                return True
        except UserError:
            together.wait()
            return False

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(one, range(4))) == 1
    assert text_of(bucket / "run" / NAME) is None
    (bucket / "run" / NAME).write_text(replace(Holder.this(), machine="other").text())
    with Lock(bucket / "run", beat=0.05, stale=1.0) as first:
        elsewhere = replace(Holder.this(), machine="other")
        with pytest.raises(UserError, match="is being trained in by"):
            second = Lock(bucket / "run", beat=0.05, stale=1.0)
            second._me = elsewhere
            second.__enter__()
        first.check()
        REFUSED.append(NAME)  # for a while
        time.sleep(0.3)
        first.check()
        REFUSED.clear()
        before = Holder.read(text_of(bucket / "run" / NAME)).beats
        time.sleep(0.5)
        assert Holder.read(text_of(bucket / "run" / NAME)).beats > before


def test_what_is_not_there(bucket, monkeypatch):
    with pytest.raises(UserError, match="scheme must be one of gs, s3, az"):
        located("ftp://bucket/run")
    with pytest.raises(UserError, match="pip install adlfs"):
        located("az://bucket/run")
    assert not located("gs://bucket/absent").exists()
