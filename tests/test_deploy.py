"""The files of deploy/ against the schemas of the programs that read them, and against each other."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).parents[1] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
# The oldest Kubernetes that is still maintained somewhere, and a new one.
RELEASES = ("1.30", "1.34")


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", ["deployment", "service", "autoscaler", "volume", "disruption"])
def test_kubernetes_takes_the_manifests(name, release):
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(load(KUBERNETES / f"{name}.yaml"), release, strict=True)


def test_the_gpu_variant_changes_what_is_there():
    validate = pytest.importorskip("kubernetes_validate")
    base, patch = load(KUBERNETES / "deployment.yaml"), load(KUBERNETES / "gpu" / "deployment.yaml")
    assert patch["metadata"]["name"] == base["metadata"]["name"]
    (container,) = base["spec"]["template"]["spec"]["containers"]
    (changed,) = patch["spec"]["template"]["spec"]["containers"]
    assert changed["name"] == container["name"]
    container["env"] = changed["env"]
    container["resources"]["limits"] |= changed["resources"]["limits"]
    base["spec"]["template"]["spec"]["tolerations"] = patch["spec"]["template"]["spec"]["tolerations"]
    validate.validate(base, RELEASES[-1], strict=True)


@pytest.mark.parametrize("folder", [KUBERNETES, KUBERNETES / "gpu"], ids=["base", "gpu"])
def test_kustomizations_name_what_is_there(folder):
    tree = load(folder / "kustomization.yaml")
    paths = tree["resources"] + [patch["path"] for patch in tree.get("patches", [])]
    paths += [path for entry in tree["configMapGenerator"] for path in entry["files"]]
    assert all((folder / path).exists() for path in paths)
    assert tree["images"][0]["name"] == "tensorflow/serving"


def test_compose_takes_its_file():
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    run = subprocess.run([*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    stated = set(re.findall(r"^(\w+)=", (DEPLOY / ".env").read_text(), re.M))
    assert set(re.findall(r"\$\{(\w+)\}", (DEPLOY / "compose.yaml").read_text())) == stated


def test_one_server_everywhere():
    """The release and the arguments of the server are the same in all of the files."""
    compose = load(DEPLOY / "compose.yaml")["services"]["serving"]
    (container,) = load(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]["containers"]
    assert compose["command"] == container["args"]
    release = load(KUBERNETES / "kustomization.yaml")["images"][0]["newTag"]
    assert f"SERVING_IMAGE=tensorflow/serving:{release}\n" in (DEPLOY / ".env").read_text()
    assert load(KUBERNETES / "gpu" / "kustomization.yaml")["images"][0]["newTag"] == f"{release}-gpu"
    assert load(DEPLOY / "kserve.yaml")["spec"]["predictor"]["model"]["runtimeVersion"] == release


# Of TensorFlow Serving's session_bundle_config.proto and monitoring_config.proto, which no package holds.
OTHER_PROTOS = """
name: "serving_files.proto" package: "files" syntax: "proto3" dependency: "google/protobuf/wrappers.proto"
message_type { name: "BatchingParameters"
  field { name: "max_batch_size" number: 1 label: LABEL_OPTIONAL type_name: ".google.protobuf.Int64Value" }
  field { name: "batch_timeout_micros" number: 2 label: LABEL_OPTIONAL type_name: ".google.protobuf.Int64Value" }
  field { name: "max_enqueued_batches" number: 3 label: LABEL_OPTIONAL type_name: ".google.protobuf.Int64Value" }
  field { name: "num_batch_threads" number: 4 label: LABEL_OPTIONAL type_name: ".google.protobuf.Int64Value" }
  field { name: "thread_pool_name" number: 5 label: LABEL_OPTIONAL type_name: ".google.protobuf.StringValue" }
  field { name: "allowed_batch_sizes" number: 6 label: LABEL_REPEATED type: TYPE_INT64 }
  field { name: "pad_variable_length_inputs" number: 7 label: LABEL_OPTIONAL type: TYPE_BOOL } }
message_type { name: "MonitoringConfig"
  field { name: "prometheus_config" number: 1 label: LABEL_OPTIONAL type_name: ".files.PrometheusConfig" } }
message_type { name: "PrometheusConfig"
  field { name: "enable" number: 1 label: LABEL_OPTIONAL type: TYPE_BOOL }
  field { name: "path" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING } }
"""


def serving_message(kind):
    """An empty message that TensorFlow Serving reads a file into."""
    if kind == "ModelServerConfig":
        config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
        return config.ModelServerConfig()
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(wrappers_pb2.DESCRIPTOR.serialized_pb))
    pool.Add(text_format.Parse(OTHER_PROTOS, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"files.{kind}"))()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config/batching.txt", "BatchingParameters"),
        ("gpu/batching.txt", "BatchingParameters"),
        ("config/monitoring.txt", "MonitoringConfig"),
        ("config/models.txt", "ModelServerConfig"),
        ("config/canary.txt", "ModelServerConfig"),
    ],
)
def test_tensorflow_serving_takes_its_files(name, kind):
    message = text_format.Parse((KUBERNETES / name).read_text(), serving_message(kind))
    if kind == "BatchingParameters":
        # Larger batches than the export's --max_images would fail.
        assert message.allowed_batch_sizes[-1] == message.max_batch_size.value <= 16
    elif kind == "MonitoringConfig":
        config = load(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"][0]
        assert message.prometheus_config.path == config["metrics_path"]
    else:
        (config,) = message.model_config_list.config
        assert set(config.version_labels.values()) <= set(config.model_version_policy.specific.versions)


def test_prometheus_takes_its_files():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    run = subprocess.run(
        [promtool, "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 rules found" in run.stdout


def test_kserve_knows_every_field():
    """By the field names and types of the models in KServe's own package."""
    models = json.loads((Path(__file__).parent / "golden" / "kserve_fields.json").read_text())
    simple = {"str": str, "int": int, "float": (int, float), "bool": bool}

    def check(value, kind, place):
        if kind in simple:
            assert isinstance(value, simple[kind]), place
        elif kind in models:
            for name, inner in value.items():
                assert name in models[kind], f"{place}.{name}"
                check(inner, models[kind][name], f"{place}.{name}")

    tree = load(DEPLOY / "kserve.yaml")
    assert tree["apiVersion"] == "serving.kserve.io/v1beta1" and tree["kind"] == "InferenceService"
    check(tree, "V1beta1InferenceService", "InferenceService")
    assert {"modelFormat", "storageUri"} <= set(tree["spec"]["predictor"]["model"])
