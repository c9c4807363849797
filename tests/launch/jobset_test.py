"""gke_jobset.yaml against the schemas of Kubernetes and, outside, of JobSet.

The Job inside is checked by Kubernetes's own schema. JobSet's is in no package:
the one here was written by hand from the documented fields of its v1alpha2
resource, as far as the file uses them, so it is no proof that a cluster takes
the file.
"""

from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

_FILE = Path(__file__).parents[2] / "launch" / "gke_jobset.yaml"
_NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_REASONS = (
  "BackoffLimitExceeded",
  "DeadlineExceeded",
  "FailedIndexes",
  "MaxFailedIndexesExceeded",
  "PodFailurePolicy",
)
_ACTIONS = "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"


def _object(properties: dict, *required: str) -> dict:
  return {
    "type": "object",
    "properties": properties,
    "required": list(required),
    "additionalProperties": False,
  }


_RULE = _object(
  {
    "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*\\w)?$"},
    "action": {"enum": list(_ACTIONS)},
    "onJobFailureReasons": {"type": "array", "items": {"enum": list(_REASONS)}},
    "targetReplicatedJobs": _STRINGS,
  },
  "name",
  "action",
)
_JOBSET = _object(
  {
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
    "kind": {"const": "JobSet"},
    "metadata": _object(
      {"name": _NAME, "annotations": {"type": "object"}}, "name"
    ),
    "spec": _object(
      {
        "failurePolicy": _object(
          {
            "maxRestarts": {"type": "integer", "minimum": 0},
            "restartStrategy": {"enum": ["Recreate", "BlockingRecreate"]},
            "rules": {"type": "array", "items": _RULE},
          }
        ),
        "replicatedJobs": {
          "type": "array",
          "minItems": 1,
          "items": _object(
            {
              "name": _NAME,
              "replicas": {"type": "integer", "minimum": 0},
              "template": _object({"spec": {"type": "object"}}, "spec"),
            },
            "name",
            "template",
          ),
        },
      },
      "replicatedJobs",
    ),
  },
  "apiVersion",
  "kind",
  "metadata",
  "spec",
)


def _read() -> dict:
  return yaml.safe_load(_FILE.read_text())


def _job(jobset: dict) -> dict:
  [replicated] = jobset["spec"]["replicatedJobs"]
  spec = replicated["template"]["spec"]
  metadata = {"name": replicated["name"]}
  return {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": metadata,
    "spec": spec,
  }


def test_it_is_a_jobset_of_jobs():
  jobset = _read()
  jsonschema.validate(jobset, _JOBSET)
  for version in ("1.30", kubernetes_validate.latest_version()):
    kubernetes_validate.validate(_job(jobset), version, strict=True)


def test_the_schemas_see_mistakes():
  jobset = _read()
  jobset["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(jobset, _JOBSET)
  job = _job(_read())
  job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["operater"] = "In"
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(job, "1.30", strict=True)


def test_exit_code_75_restarts_all_without_being_counted():
  jobset = _read()
  spec = _job(jobset)["spec"]
  told, _ = spec["podFailurePolicy"]["rules"]
  assert told["action"] == "FailJob"
  assert told["onExitCodes"]["values"] == [75]
  # What Kubernetes asks of a Job that has such a policy.
  assert spec["template"]["spec"]["restartPolicy"] == "Never"
  [rule] = jobset["spec"]["failurePolicy"]["rules"]
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"


def test_pods_and_chips_make_up_the_slice():
  spec = _job(_read())["spec"]
  pod = spec["template"]["spec"]
  [container] = pod["containers"]
  rows, columns = pod["nodeSelector"][
    "cloud.google.com/gke-tpu-topology"
  ].split("x")
  chips = int(container["resources"]["limits"]["google.com/tpu"])
  assert int(rows) * int(columns) == chips * spec["parallelism"]
  # What jax needs: one pod for each index.
  assert spec["completions"] == spec["parallelism"]
  assert spec["completionMode"] == "Indexed"
