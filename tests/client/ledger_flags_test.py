import types

from absl import flags
import pytest

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.client import ledger_flags
from ecos_jax.privacy import ledger

_FIXED = ("max_epsilon", "delta", "relation", "unit")


class _Flags(dict):
  """Flags that are read as items or as attributes."""

  def __getattr__(self, name):
    return self[name].value


@pytest.fixture
def given(monkeypatch):
  """Returns a function that gives flags."""

  def given(**values):
    values = dict.fromkeys(_FIXED) | {"create_ledger": False} | values
    found = {n: types.SimpleNamespace(value=v) for n, v in values.items()}
    monkeypatch.setattr(flags, "FLAGS", _Flags(found))

  return given


def test_only_what_is_given_is_fixed(given):
  given()
  assert ledger_flags.fixed() == {}
  given(max_epsilon=0.0, unit=config.Unit.PERSON)
  assert ledger_flags.fixed() == {
    "max_epsilon": 0.0,
    "unit": config.Unit.PERSON,
  }


def test_a_ledger_is_made_when_asked_with_what_the_flags_say(given, tmp_path):
  path = tmp_path / "ledger"
  given(create_ledger=True)
  with pytest.raises(errors.EcosError, match="needs `max_epsilon`"):
    ledger_flags.guarantee(path)
  assert not path.exists()
  given(create_ledger=True, max_epsilon=2.0, delta=1e-6)
  made = ledger_flags.guarantee(path)
  assert (made.max_epsilon, made.delta) == (2.0, 1e-6)
  assert (made.relation, made.unit) == ("add_remove", "sample")
  assert ledger.read(path).guarantee == made
  # Once more, for the same, is no error.
  assert ledger_flags.guarantee(path) == made


def test_a_promise_stays_as_it_was_made(given, tmp_path):
  path = tmp_path / "ledger"
  made = ledger.create(path, max_epsilon=2.0)
  for values in ({}, {"max_epsilon": 2.0}, {"delta": 1e-5}):
    given(**values)
    assert ledger_flags.guarantee(path) == made
  for values in (
    {"max_epsilon": 3.0},
    {"delta": 1e-6},
    {"relation": config.Relation.REPLACE_ONE},
    {"unit": config.Unit.PERSON},
  ):
    given(**values)
    with pytest.raises(errors.EcosError, match="for good: leave out"):
      ledger_flags.guarantee(path)
  given(create_ledger=True, max_epsilon=3.0)
  with pytest.raises(errors.EcosError):
    ledger_flags.guarantee(path)
  assert ledger.read(path).guarantee == made


def test_without_a_ledger_nothing_is_made(given, tmp_path):
  given(max_epsilon=2.0)
  with pytest.raises(errors.EcosError, match="`create_ledger`"):
    ledger_flags.guarantee(tmp_path / "ledger")
  assert not (tmp_path / "ledger").exists()
