import json

from ecos_jax.training import metrics


def _rows(directory):
  lines = (directory / metrics.FILE).read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_resumed_run_writes_no_step_twice(tmp_path):
  with metrics.Writer(tmp_path, 0) as writer:
    for step in (10, 20, 30):
      writer.write(step, {"loss": 1.0 / step})
  with metrics.Writer(tmp_path, 20) as writer:
    writer.write(30, {"loss": 7.0})
  assert _rows(tmp_path) == [
    {"step": 10, "loss": 0.1},
    {"step": 20, "loss": 0.05},
    {"step": 30, "loss": 7.0},
  ]
  assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
  with metrics.Writer(tmp_path, 0) as writer:
    writer.write(10, {"loss": 1.0})
  with (tmp_path / metrics.FILE).open("a") as file:
    file.write('{"step": 20, "lo')
  with metrics.Writer(tmp_path, 10) as writer:
    writer.write(20, {"loss": 2.0})
  assert [row["step"] for row in _rows(tmp_path)] == [10, 20]


def test_a_new_run_starts_empty(tmp_path):
  with metrics.Writer(tmp_path, 0) as writer:
    writer.write(10, {"loss": 1.0})
  with metrics.Writer(tmp_path, 0):
    pass
  assert not _rows(tmp_path)
