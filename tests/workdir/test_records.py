"""What a run writes beside its checkpoints: read again by others, and on a full disk."""

import json
import resource
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ftjax.workdir.records import Records, read_metrics


def row(step):
    return {"step": step, "loss": 1.0 / step, "learning_rate": 0.1, "tokens_per_second": 1.0}


def events(folder):
    """Those of its files in turn: length, its sum, event, and its sum each."""
    for file in sorted(folder.iterdir(), key=lambda file: int(file.suffix[1:])):
        held, at = file.read_bytes(), 0
        while at < len(held):
            (size,) = struct.unpack_from("Q", held, at)
            yield Event.FromString(held[at + 12 : at + 12 + size])
            at += 16 + size


def test_tensorboard_is_told_what_is_logged(tmp_path):
    """A run that goes on hides what it will write again."""
    for first, last in ((0, 9), (5, 12)):
        records = Records(tmp_path, first, 12)
        for step in range(first + 1, last + 1):
            records.log(row(step))
        records.keep()
        records.close()
    found = {}
    for event in events(tmp_path / "tensorboard"):
        if event.session_log.status == SessionLog.START:
            found = {step: loss for step, loss in found.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == "loss":
                assert event.step not in found
                found[event.step] = value.simple_value
    assert found == pytest.approx({step: 1 / step for step in range(1, 13)})


@pytest.mark.parametrize("room", [0, 2000, 9000])
def test_a_full_disk_ends_a_run_by_the_file_that_it_refuses(tmp_path, room):
    """Whichever of its files that is: nothing waits for what cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="metrics.jsonl|tensorboard"):
            records = Records(tmp_path, 0, 1000)
            for step in range(1, 1000):
                records.log(row(step))
                records.keep()
        if room:
            with pytest.raises(OSError, match="metrics.jsonl|tensorboard"):
                records.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    written = [each["step"] for each in read_metrics(tmp_path / "metrics.jsonl")]
    assert written == list(range(1, len(written) + 1))


def test_rows_are_json_whatever_the_numbers(tmp_path):
    records = Records(tmp_path, 0, 1)
    records.log(row(1) | {"loss": float("nan")})
    records.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
