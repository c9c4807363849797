import types

from ecos_jax.report import table


def _summary(**changes):
  fields = {
    "method": "ecos",
    "accuracy": 0.9656,
    "proxy_size": 1000,
    "proxy_client_share": 0.551,
    "epsilon": 0.27601,
    "bytes_down": 29216,
    "bytes_up": 1184,
  }
  return types.SimpleNamespace(**(fields | changes))


def test_a_line_a_run_with_what_was_measured():
  lines = table.table(
    {
      "a": _summary(),
      "b": _summary(method="mak", epsilon=None, accuracy=None),
    }
  ).splitlines()
  assert len(lines) == 3
  assert lines[1].split()[:4] == ["a", "ecos", "96.6", "%"]
  assert "29,216" in lines[1]
  assert "unknown" in lines[2]
  assert "not private" in lines[2]
