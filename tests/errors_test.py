import pytest

from ecos_jax import errors


@pytest.mark.parametrize("kind", [errors.EcosError, errors.ConfigError])
def test_an_error_names_the_argument_and_keeps_its_class(kind):
  with pytest.raises(kind) as caught, errors.about("data", "x"):
    raise kind("it is empty")
  assert type(caught.value) is kind
  assert str(caught.value) == "`data`=x: it is empty"


def test_a_defect_keeps_its_text():
  with pytest.raises(ValueError) as caught, errors.about("data", "x"):
    raise ValueError("a defect")
  assert str(caught.value) == "a defect"
