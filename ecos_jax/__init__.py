"""Train in the cloud without uploading the data: private proxy sampling.

The whole method as functions on arrays:

    # In the cloud, with public images (or features of your own, [N, d]).
    pool = ecos_jax.encode(images)
    codebook = ecos_jax.fit_codebook(pool, 100, key)
    question = ecos_jax.ask(codebook, "hog_grey")  # bytes, to the client

    # At the client, with private images (or features).
    ecos_jax.create_ledger("client.ledger", max_epsilon=2.0)
    answer = ecos_jax.answer(  # bytes, to the cloud
      question, private, epsilon=0.5, ledger="client.ledger"
    )

    # In the cloud again.
    choice = ecos_jax.choose(pool, codebook, question, answer, 1000, key)
    proxy = images[choice.indices]

Each name is loaded when it is first used, so `import ecos_jax` is quick.
"""

from collections.abc import Callable
import functools
import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ecos_jax.client.answering import answer
  from ecos_jax.client.answering import label
  from ecos_jax.cloud.bank import FeatureBank
  from ecos_jax.cloud.choose import Choice
  from ecos_jax.cloud.choose import choose
  from ecos_jax.cloud.codebook import Codebook
  from ecos_jax.cloud.codebook import fit as fit_codebook
  from ecos_jax.cloud.encode import build as build_bank
  from ecos_jax.cloud.question import ask
  from ecos_jax.data.pools import ArraySource
  from ecos_jax.data.pools import Pool
  from ecos_jax.data.pools import open_source
  from ecos_jax.data.proxy import open_proxy
  from ecos_jax.data.proxy import write as write_proxy
  from ecos_jax.encoders.encode import encode
  from ecos_jax.errors import EcosError
  from ecos_jax.privacy.ledger import create as create_ledger

__all__ = [
  "ArraySource",
  "Choice",
  "Codebook",
  "EcosError",
  "FeatureBank",
  "Pool",
  "answer",
  "ask",
  "build_bank",
  "choose",
  "create_ledger",
  "encode",
  "fit_codebook",
  "label",
  "open_proxy",
  "open_source",
  "write_proxy",
]
__version__ = "0.1.0"

# The imports above, for the running program: each when it is first used.
_HOMES = {
  "ArraySource": "data.pools:ArraySource",
  "Choice": "cloud.choose:Choice",
  "Codebook": "cloud.codebook:Codebook",
  "EcosError": "errors:EcosError",
  "FeatureBank": "cloud.bank:FeatureBank",
  "Pool": "data.pools:Pool",
  "answer": "client.answering:answer",
  "ask": "cloud.question:ask",
  "build_bank": "cloud.encode:build",
  "choose": "cloud.choose:choose",
  "create_ledger": "privacy.ledger:create",
  "encode": "encoders.encode:encode",
  "fit_codebook": "cloud.codebook:fit",
  "label": "client.answering:label",
  "open_proxy": "data.proxy:open_proxy",
  "open_source": "data.pools:open_source",
  "write_proxy": "data.proxy:write",
}


def _in_32_bits(function: Callable) -> Callable:
  """Returns a function that computes alike where JAX is set to 64 bits."""

  @functools.wraps(function)
  def run(*args: Any, **kwargs: Any) -> Any:
    import jax

    with jax.enable_x64(False):
      return function(*args, **kwargs)

  return run


def __getattr__(name: str) -> Any:
  """Returns what `__all__` names, after loading it (PEP 562)."""
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module, _, attribute = _HOMES[name].partition(":")
  value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
  if inspect.isfunction(value):
    value = _in_32_bits(value)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """Returns all names, loaded or not."""
  return sorted({*globals(), *__all__})
