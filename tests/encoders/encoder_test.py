import dataclasses
import hashlib

from ecos_jax.encoders import encoder
from ecos_jax.encoders import registry


def test_the_digest_is_of_the_name_and_the_sorted_settings():
  text = b'["mine", {"cell": 8, "norm": "L2"}]'
  expected = hashlib.sha256(text).hexdigest()
  assert encoder.digest("mine", {"norm": "L2", "cell": 8}) == expected
  assert encoder.digest("mine", {"cell": 8, "norm": "L2"}) == expected
  others = (("yours", {"cell": 8}), ("mine", {"cell": 9}), ("mine", {}))
  assert len({encoder.digest(*other) for other in others} | {expected}) == 4


def test_a_query_names_the_source_of_the_weights_where_there_is_one():
  hog = registry.get("hog")
  assert hog.message_settings == hog.settings
  weighted = dataclasses.replace(hog, source="a page")
  assert weighted.message_settings == {**hog.settings, "source": "a page"}
