import contextlib
import os
from pathlib import Path
import signal

import pytest

from ecos_jax import children

_ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def _child(start, job, log):
  return contextlib.closing(
    children.Child(start, job, environment=_ENVIRONMENT, log=log)
  )


def test_questions_are_answered_in_order_and_prints_go_to_the_log(tmp_path):
  log = tmp_path / "log"
  log.write_text("before\n")
  with _child("pkgutil:resolve_name", "builtins:print", log) as child:
    assert child.call("printed") is None
    child.pause()
    child.resume()
    assert child.call(["again", 2]) is None
  assert log.read_text() == "before\nprinted\n['again', 2]\n"
  assert children.once("builtins:sum", [1, 2, 3], _ENVIRONMENT) == 6


def test_a_child_that_cannot_start_says_why(tmp_path):
  log = tmp_path / "log"
  log.write_text("of an earlier child\n")
  with (
    pytest.raises(children.ChildError, match="FileNotFoundError"),
    _child("os:listdir", "nowhere", log),
  ):
    pass


def test_a_child_that_ends_says_how(tmp_path):
  with _child("pkgutil:resolve_name", "os:abort", tmp_path / "log") as child:
    with pytest.raises(children.ChildError, match="out of memory"):
      os.kill(child.process.pid, signal.SIGKILL)
      child.call(None)
    # It stays lost.
    with pytest.raises(children.ChildError, match="signal 9"):
      child.call(None)
  with pytest.raises(children.ChildError, match="exit code 3"):
    children.once("os:_exit", 3, _ENVIRONMENT)
