import pytest

from ecos_jax import errors
from ecos_jax.config import classes


@pytest.mark.parametrize(
  ("given", "names"),
  [
    ((), ()),
    (("cat", "dog"), ("cat", "dog")),
    (("cat,dog",), ("cat", "dog")),
    (("cat, dog",), ("cat", "dog")),
    (["cat"], ("cat",)),
    ((1, 2), ("1", "2")),
    ((7,), ("7",)),
    (("cafe\u0301", "b"), ("caf\u00e9", "b")),
    (("folders",), classes.FOLDERS),
    (("numbers",), classes.NUMBERS),
  ],
)
def test_names_are_what_they_plainly_mean(given, names):
  assert classes.named(given) == names


@pytest.mark.parametrize(
  ("given", "said"),
  [
    (("a", "b", "a"), "twice: a"),
    (("caf\u00e9", "cafe\u0301"), "twice"),
    (("a,,b",), "has no name"),
    (("a", " "), "has no name"),
  ],
)
def test_what_is_no_list_of_classes_is_refused(given, said):
  with pytest.raises(errors.EcosError, match=f"`classes` .*{said}"):
    classes.named(given)


def test_a_class_that_is_not_there_is_told_with_names_like_it():
  found = ("cat", "dog", "Windmill", "x-ray")
  text = classes.missing(("dgo", "Cat", "windmills", "zebra"), found)
  assert text == (
    "'dgo' (near: dog), 'Cat' (near: cat), 'windmills' (near: Windmill), "
    "'zebra'"
  )
  assert classes.missing(["a"], ()) == "'a'"
