"""Answers a query about private data: `python -m ecos_jax.client.respond`.

    python -m ecos_jax.client.respond --query=query.safetensors \
      --data=folder:/private/images --epsilon=0.5 --max_epsilon=2 \
      --ledger=ledger.jsonl --out=response.safetensors

It runs beside the private data and needs nothing of the cloud but the query.
Every sample votes for the nearest centroid; the votes of a random subsample are
counted, and the counts leave with noise on them. The query only proposes terms:
the client decides, and is told what it will cost before it is asked.

What is checked comes first, then the budget, then the consent; the data are not
opened before all three. The number of samples is private too, so nothing here
prints it, not even as progress.
"""

from collections.abc import Callable
import dataclasses
import datetime
from pathlib import Path

from absl import flags
import numpy as np

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.client import command
from ecos_jax.client import coverage
from ecos_jax.client import encoding
from ecos_jax.config import limits
from ecos_jax.config import spec as spec_lib
from ecos_jax.data import features as feature_files
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.messages import wire
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms

# A constant, and not what the query proposes: its author may have seen earlier
# answers, and terms that depend on those cost more (docs/privacy.md).
_GAMMA = 0.8

# What votes: images, or features [n, d] made with the query's encoder.
Data = pools.Source | np.ndarray


def vote(
  query: messages.Query,
  data: Data,
  batch_size: int,
  encoder: registry.Encoder | None = None,
) -> np.ndarray:
  """Returns the nearest centroid of every sample, [n] int64; it is private.

  Args:
    query: From the cloud.
    data: Images, or features [n, d].
    batch_size: Images to read and encode at once.
    encoder: As in `encoding.encoder_of`.

  Raises:
    EcosError: The encoder is not the one installed here, or d differs.
  """
  if isinstance(data, np.ndarray):
    return coverage.nearest(data, query.centroids)
  if not isinstance(data, feature_files.FeatureSource):
    encoder = encoding.encoder_of(query, encoder)
  result = np.empty(len(data), np.int64)
  for start in range(0, len(data), batch_size):
    indices = np.arange(start, min(start + batch_size, len(data)))
    rows = features(data, indices, encoder, batch_size)
    result[indices] = coverage.nearest(rows, query.centroids)
  return result


def features(
  data: pools.Source,
  indices: np.ndarray,
  encoder: registry.Encoder | None,
  batch_size: int,
) -> np.ndarray:
  """Returns the features [n, d] of the samples at `indices` [n].

  Args:
    data: Images, or features already.
    indices: [n].
    encoder: Of images.
    batch_size: Images to encode at once.
  """
  if isinstance(data, feature_files.FeatureSource):
    return data.features(indices)
  assert encoder is not None
  images = data.images(indices, encoder.image_size)
  return registry.encode(encoder, images, batch_size)


def release(
  votes: np.ndarray,
  centroids: int,
  mechanism: mechanisms.Mechanism,
  repetitions: int = 1,
) -> np.ndarray:
  """Returns noised coverage, [repetitions, R] int64: what may leave.

  Args:
    votes: [n] int64, one vote a sample.
    centroids: R.
    mechanism: Draws the subsample and the noise.
    repetitions: Independent draws. A response has one; the audit takes many.
  """
  shape = (repetitions, len(votes))
  taken = mechanism.subsample(repetitions * len(votes)).reshape(shape)
  cells = votes + centroids * np.arange(repetitions)[:, None]
  counts = np.bincount(cells[taken], minlength=repetitions * centroids)
  return mechanism.noised(counts.reshape(repetitions, centroids))


def respond(
  query_bytes: bytes,
  data: Data,
  mechanism: mechanisms.Mechanism,
  *,
  encoder: registry.Encoder | None = None,
  batch_size: int = 1024,
) -> bytes:
  """Returns the response to a query, as bytes, for one spend of the mechanism.

  Args:
    query_bytes: From the cloud; not trusted.
    data: Images, or features [n, d] made with the query's encoder.
    mechanism: What the client decided.
    encoder: As in `encoding.encoder_of`.
    batch_size: Images to read and encode at once.

  Raises:
    EcosError: The query is refused, or the data do not fit it.
  """
  query = messages.Query.from_bytes(query_bytes)
  r = len(query.centroids)
  scores = release(vote(query, data, batch_size, encoder), r, mechanism)[0]
  response = messages.Response(scores, query.digest, mechanism.statement)
  return response.to_bytes()


def answer(
  query_bytes: bytes,
  open_data: Callable[[], Data],
  mechanism: mechanisms.Mechanism,
  ledger_path: Path,
  tag: str,
  *,
  consent: Callable[[str], None],
  max_epsilon: float | None = None,
  encoder: registry.Encoder | None = None,
  batch_size: int = 1024,
) -> bytes:
  """Returns the response to a query, which the ledger holds when this returns.

  The same query on the same data at the same terms gets the stored response
  and costs nothing.

  Args:
    query_bytes: From the cloud; not trusted.
    open_data: Opens the data; called last, if nothing refuses.
    mechanism: What the client decided.
    ledger_path: The ledger of these data.
    tag: Name of the data.
    consent: Is told what will happen, and raises to stop it.
    max_epsilon: Budget of the ledger, as `ledger.Ledger.epsilon` counts.
    encoder: As in `encoding.encoder_of`.
    batch_size: Images to read and encode at once.

  Raises:
    EcosError: The query is refused, the ledger is damaged, the budget would be
      exceeded, or the data do not fit.
  """
  query = messages.Query.from_bytes(query_bytes)
  terms = mechanism.terms
  fields = dataclasses.asdict(terms)
  with ledger.locked(ledger_path) as book:
    stored = book.find(query.digest, tag, fields)
    if stored is not None:
      return stored_response(stored)
    spent = book.epsilon(terms)
    total = book.epsilon(terms, mechanism.cost)
    # Written so that a budget of NaN refuses.
    if max_epsilon is not None and not total <= max_epsilon:
      raise errors.EcosError(
        f"refused: {spent:g} of --max_epsilon={max_epsilon:g} is spent, and "
        f"with this answer it would be {total:g}; give a smaller --epsilon"
      )
    ledger_line = describe_ledger(book, terms, mechanism.cost, max_epsilon)
    consent(_describe(query, mechanism, ledger_line))
    response = respond(
      query_bytes,
      open_data(),
      mechanism,
      encoder=encoder,
      batch_size=batch_size,
    )
    now = datetime.datetime.now(datetime.UTC)
    book.append(
      ledger.Entry(
        time=now.isoformat(timespec="seconds"),
        data=tag,
        query_digest=query.digest,
        terms=fields,
        epsilon=mechanism.statement.epsilon,
        cost=mechanism.cost,
        response=response,
      )
    )
  return response


def stored_response(entry: ledger.Entry) -> bytes:
  """Returns the response of an entry, and says that it is not new."""
  print(
    f"stored   this was answered at {entry.time}, so it costs nothing now; "
    "it knows nothing of changes to the data since"
  )
  return entry.response


def describe_ledger(
  book: ledger.Ledger,
  terms: messages.Terms | messages.LabelTerms,
  cost: accounting.Cost,
  max_epsilon: float | None,
) -> str:
  """Returns what the ledger holds before and after an answer, and the rest."""
  delta, relation = book.promise(terms)
  total = book.epsilon(terms, cost)
  budget = "no budget is set (--max_epsilon)"
  if max_epsilon is not None:
    budget = f"{max_epsilon - total:.6g} is left of {max_epsilon:g}"
  return (
    f"ledger   epsilon {book.epsilon(terms):.6g} spent before, {total:.6g} "
    f"after, all answers together (delta {delta:g}, {relation}); {budget}"
  )


def _describe(
  query: messages.Query, mechanism: mechanisms.Mechanism, ledger_line: str
) -> str:
  """Returns who asks what, what leaves, what it costs and what is left."""
  r, d = query.centroids.shape
  terms, proposed = mechanism.terms, query.terms
  paper = accounting.paper_epsilon(terms.sigma, terms.gamma, terms.delta)
  return "\n".join(
    (
      f"query    {query.digest[:16]}: to which of {r} centroids (encoder "
      f"{query.encoder_name}, d = {d}) is each of your samples nearest?",
      f"leaves   {r} integers: counts of a random {terms.gamma:.4g} of the "
      f"samples, each with noise of sigma {terms.sigma:g}; and these terms",
      f"costs    epsilon {mechanism.statement.epsilon:.6g} (delta "
      f"{terms.delta:g}, {terms.relation}); the paper's bound for the same "
      f"noise is {paper:.4g}",
      f"         the query proposes sigma {proposed.sigma:g}, gamma "
      f"{proposed.gamma:.4g}, delta {proposed.delta:g}, {proposed.relation}",
      ledger_line,
    )
  )


def _define_flags() -> None:
  flags.DEFINE_string("query", None, "The query file.", required=True)
  command.define_shared_flags(
    "folder:DIR, images:FILE.npy or .npz (uint8), tfds:NAME:SPLIT, or "
    "features:PATH (.npy, float [n, d], made with the encoder of the query)."
  )
  flags.DEFINE_float(
    "epsilon",
    None,
    "The most this answer may cost; the least noise that keeps it is taken.",
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    "sigma",
    None,
    "Instead of --epsilon: the noise, in votes.",
    lower_bound=limits.MIN_SIGMA,
    upper_bound=limits.MAX_SIGMA,
  )
  flags.DEFINE_float(
    "gamma",
    _GAMMA,
    "Share of the samples that vote, drawn at random.",
    lower_bound=limits.MIN_GAMMA,
    upper_bound=1.0,
  )
  flags.DEFINE_enum_class(
    "relation",
    config.Relation.ADD_REMOVE,
    config.Relation,
    "What epsilon hides: that a sample was added or removed, or replaced.",
  )


def _mechanism() -> mechanisms.Mechanism:
  f = flags.FLAGS
  if (f.epsilon is None) == (f.sigma is None):
    raise errors.ConfigError("give --epsilon or --sigma, and not both")
  relation = f.relation.value
  if f.sigma is not None:
    terms = messages.Terms(f.sigma, f.gamma, f.delta, relation)
    return mechanisms.Mechanism(terms)
  return mechanisms.Mechanism.calibrated(f.epsilon, f.gamma, f.delta, relation)


def main(argv: list[str]) -> None:
  """Answers the query that the flags name."""
  del argv
  f = flags.FLAGS
  out, ledger_path = command.checked_paths("query")
  query_bytes = wire.read_file(Path(f.query))
  query = messages.Query.from_bytes(query_bytes)
  encoder = None
  if not isinstance(spec_lib.parse(f.data), spec_lib.Features):
    encoder = encoding.encoder_of(query, encoding.own_encoder(), f.weights)

  def open_data() -> Data:
    data = command.open_data()
    d = query.centroids.shape[1]
    if isinstance(data, feature_files.FeatureSource) and data.dimension != d:
      raise errors.EcosError(
        f"--data={f.data} must hold features [n, {d}], as the query's"
      )
    return data

  response = answer(
    query_bytes,
    open_data,
    _mechanism(),
    ledger_path,
    command.tag_of(f.data, f.data_dir),
    consent=command.consent,
    max_epsilon=f.max_epsilon,
    encoder=encoder,
    batch_size=f.batch_size,
  )
  files.write(out, response)
  print(f"wrote    {out} ({len(response)} bytes): carry it to the cloud")


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
