"""Which processes there are, on clusters as their environments are, by JAX's own classes."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster

from ftjax.commands import entry as cli
from ftjax.errors import UserError
from ftjax.parallel.hosts import Processes, processes

KNOWN = ("JAX_", "SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_COMPLETION", "CUDA_")
STEP = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07,09-12]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
}
HERE = "127.0.0.1"
POD = {"TPU_WORKER_HOSTNAMES": f"{HERE},b,c,d", "TPU_WORKER_ID": "3", "MEGASCALE_NUM_SLICES": "1"}
POD |= {
    "TPU_SKIP_MDS_QUERY": "true",
    "MEGASCALE_SLICE_ID": "0",
    "MEGASCALE_COORDINATOR_ADDRESS": f"{HERE}:8080",
}
GIVEN = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}


@pytest.fixture
def environ(monkeypatch):
    """Sets an environment that has nothing else of a cluster."""
    from os import environ

    for name in [name for name in environ if name.startswith(KNOWN) and name != "JAX_PLATFORMS"]:
        monkeypatch.delenv(name)

    def change(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, None),
        (GIVEN, Processes("a:1", 3, 2)),
        ({**GIVEN, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        # One task a node has all of its devices, one of several has one, or what it was given.
        (STEP, Processes("node07:61441", 4, 2)),
        ({**STEP, "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"},
         Processes("node07:61441", 4, 2, [1])),
        ({**STEP, "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "3"},
         Processes("node07:61441", 4, 2)),
        # An allocation without srun, and a shell in one: the tasks are not there.
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "4097", "SLURM_JOB_NUM_NODES": "4"}, None),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        # The address is the user's, the rest SLURM's.
        ({**STEP, "JAX_COORDINATOR_ADDRESS": "a:1"}, Processes("a:1", 4, 2)),
        # Pods of Kubernetes that are no part of a job.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
          "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
         Processes("10.96.0.1:61441", 2, 1, [1])),
    ],
)  # fmt: skip
def test_processes_of_an_environment(environ, variables, wanted):
    environ(variables)
    assert processes() == wanted


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_lacking_is_named(environ, name, capsys, monkeypatch, config_file, tmp_path):
    """One alone, and all but one; by the command too."""
    environ({name: GIVEN[name], "GLIBC_TUNABLES": ""})
    lacking = " and ".join(other for other in GIVEN if other != name)
    assert cli.main(["train", "--config", str(config_file), "--workdir", str(tmp_path)]) == 2
    assert f"error: {name} is set, and {lacking} is not" in capsys.readouterr().err
    environ(GIVEN)
    monkeypatch.delenv(name)
    with pytest.raises(UserError, match=f"is set, and {name} is not"):
        processes()


def test_numbers_that_are_none_are_named(environ):
    environ({**GIVEN, "JAX_PROCESS_ID": "3"})
    with pytest.raises(UserError, match="JAX_PROCESS_ID=3 must be below JAX_NUM_PROCESSES=3"):
        processes()
    environ({**GIVEN, "JAX_NUM_PROCESSES": "two"})
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES='two' must be a whole number"):
        processes()


def as_jax_has_it():
    address, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, 10
    )
    return Processes(address, count, number, devices)


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        (POD, Processes(f"{HERE}:8482", 4, 3)),
        # Two slices of one host each: neither has a comma in its list of hosts.
        ({**POD, "TPU_WORKER_HOSTNAMES": "b", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2",
          "MEGASCALE_SLICE_ID": "1"}, Processes(f"{HERE}:8482", 2, 1)),
        ({**POD, "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    ],
)  # fmt: skip
def test_slices_on_gke(environ, monkeypatch, variables, wanted):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    environ(variables)
    assert processes() == wanted
    if wanted is not None:
        assert as_jax_has_it() == wanted


@pytest.fixture
def metadata(environ):
    """Google's metadata of a machine, served here."""
    attributes: dict[str, str] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            text = attributes.get(self.path.rpartition("/")[2])
            self.send_response(200 if text is not None else 404)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_):
            pass

    server = HTTPServer((HERE, 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environ({"GCE_METADATA_IP": f"{HERE}:{server.server_port}"})
    yield attributes
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("workers", "slices", "wanted"),
    [
        (f"{HERE},10.0.0.2,10.0.0.3,10.0.0.4", None, Processes(f"{HERE}:8482", 4, 3)),
        (f"a:0:{HERE},b:1:10.0.0.2,c:2:10.0.0.3,d:3:10.0.0.4", None,
         Processes(f"{HERE}:8482", 4, 3)),
        ("10.0.0.2", {"NUM_SLICES": "2", "SLICE_ID": "1", "COORDINATOR_ADDRESS": HERE},
         Processes(f"{HERE}:8482", 2, 1)),
        (HERE, None, None),
    ],
    ids=["pod", "pod in the old form", "slices of one host", "alone"],
)  # fmt: skip
def test_plain_virtual_machines_of_a_slice(monkeypatch, metadata, workers, slices, wanted):
    """They have no variables: all is in the metadata."""
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    last = workers.count(",")
    metadata |= {"worker-network-endpoints": workers, "agent-worker-number": str(last)}
    rows = [f"MEGASCALE_{name}: '{value}'" for name, value in (slices or {}).items()]
    metadata["tpu-env"] = "\n".join(["ACCELERATOR_TYPE: 'v5litepod-16'", *rows])
    assert processes() == wanted
    if wanted is not None:
        assert as_jax_has_it() == wanted


def test_a_chip_without_a_metadata_server_is_alone(environ, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    nowhere = {"GCE_METADATA_IP": f"{HERE}:9", "TPU_WORKER_ID": "0"}
    environ({**nowhere, "TPU_WORKER_HOSTNAMES": "localhost"})
    assert processes() is None
    environ({"TPU_WORKER_HOSTNAMES": "a,b"})
    with pytest.raises(UserError, match="set MEGASCALE_NUM_SLICES"):
        processes()
