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
import sys

from absl import flags
import numpy as np

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax import protocol
from ecos_jax.client import coverage
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms

_FEATURES = "features:"

# What votes: images, or features [n, d] made with the query's encoder.
Data = pools.Source | np.ndarray


def _encoder(query: protocol.Query) -> registry.Encoder:
  """Returns the query's encoder, if this installation has the very same."""
  encoder = registry.get(query.encoder_name)
  if encoder.digest != query.encoder_digest:
    raise protocol.ProtocolError(
      f"encoder_digest: the query's encoder {query.encoder_name} differs from "
      "the one installed here: cloud and client need the same ecos_jax"
    )
  if encoder.dimension != query.centroids.shape[1]:
    raise protocol.ProtocolError(
      f"centroids have d = {query.centroids.shape[1]}, the encoder "
      f"{encoder.name} has d = {encoder.dimension}"
    )
  return encoder


def vote(query: protocol.Query, data: Data, batch_size: int) -> np.ndarray:
  """Returns the nearest centroid of every sample, [n] int64; it is private.

  Args:
    query: From the cloud.
    data: Images, or features [n, d].
    batch_size: Images to read and encode at once.

  Raises:
    EcosError: The encoder is not the one installed here, or d differs.
  """
  if isinstance(data, np.ndarray):
    return coverage.nearest(data, query.centroids)
  encoder = _encoder(query)
  result = np.empty(len(data), np.int64)
  for start in range(0, len(data), batch_size):
    indices = np.arange(start, min(start + batch_size, len(data)))
    images = data.images(indices, encoder.image_size)
    features = registry.encode(encoder, images, batch_size)
    result[indices] = coverage.nearest(features, query.centroids)
  return result


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
  batch_size: int = 1024,
) -> bytes:
  """Returns the response to a query, as bytes, for one spend of the mechanism.

  Args:
    query_bytes: From the cloud; not trusted.
    data: Images, or features [n, d] made with the query's encoder.
    mechanism: What the client decided.
    batch_size: Images to read and encode at once.

  Raises:
    EcosError: The query is refused, or the data do not fit it.
  """
  query = protocol.Query.from_bytes(query_bytes)
  r = len(query.centroids)
  scores = release(vote(query, data, batch_size), r, mechanism)[0]
  response = protocol.Response(scores, query.digest, mechanism.statement)
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
    max_epsilon: Budget of the ledger, at the mechanism's delta and relation.
    batch_size: Images to read and encode at once.

  Raises:
    EcosError: The query is refused, the ledger is damaged, the budget would be
      exceeded, or the data do not fit.
  """
  query = protocol.Query.from_bytes(query_bytes)
  terms = mechanism.terms
  fields = dataclasses.asdict(terms)
  with ledger.locked(ledger_path) as book:
    stored = book.find(query.digest, tag, fields)
    if stored is not None:
      print("stored   this query was answered before, so it costs nothing now")
      return stored
    spent = book.cost.epsilon(terms.delta, terms.relation)
    total = (book.cost + mechanism.cost).epsilon(terms.delta, terms.relation)
    # Written so that a budget of NaN refuses.
    if max_epsilon is not None and not total <= max_epsilon:
      raise errors.EcosError(
        f"refused: {spent:g} of --max_epsilon={max_epsilon:g} is spent, and "
        f"with this answer it would be {total:g}; give a smaller --epsilon"
      )
    consent(_describe(query, mechanism, spent, total, max_epsilon))
    response = respond(
      query_bytes, open_data(), mechanism, batch_size=batch_size
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


def _describe(
  query: protocol.Query,
  mechanism: mechanisms.Mechanism,
  spent: float,
  total: float,
  max_epsilon: float | None,
) -> str:
  """Returns who asks what, what leaves, what it costs and what is left."""
  r, d = query.centroids.shape
  terms, proposed = mechanism.terms, query.terms
  paper = accounting.paper_epsilon(terms.sigma, terms.gamma, terms.delta)
  budget = "no budget is set (--max_epsilon)"
  if max_epsilon is not None:
    budget = f"{max_epsilon - total:.6g} is left of {max_epsilon:g}"
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
      f"ledger   epsilon {spent:.6g} spent before, {total:.6g} after, all "
      f"answers composed; {budget}",
    )
  )


def _open_features(path: Path, query: protocol.Query) -> np.ndarray:
  try:
    features = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise errors.EcosError(
      f"--data: {path} cannot be read as a .npy file: {error}"
    ) from error
  d = query.centroids.shape[1]
  if (
    not isinstance(features, np.ndarray)
    or features.dtype.kind != "f"
    or features.shape[1:] != (d,)
  ):
    raise errors.EcosError(
      f"--data: {path} must hold float features [n, {d}], as the query's"
    )
  return features


def _tag(spec: str) -> str:
  """Returns a name of the data that does not depend on the working folder."""
  kind, colon, rest = spec.partition(":")
  path = Path(rest if colon else spec)
  if not path.exists():
    return spec
  return f"{kind if colon else 'path'}:{path.resolve()}"


def _define_flags() -> None:
  flags.DEFINE_string("query", None, "The query file.", required=True)
  flags.DEFINE_string(
    "data",
    None,
    "The private data: folder:DIR, images:FILE.npy or .npz (uint8), "
    "tfds:NAME:SPLIT, or features:FILE.npy (float [n, d], made with the "
    "encoder of the query).",
    required=True,
  )
  flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
  flags.DEFINE_string(
    "ledger",
    None,
    "The file with all answers about these data; made if need be.",
    required=True,
  )
  flags.DEFINE_string("out", None, "Where to put the response.", required=True)
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
    lower_bound=protocol.MIN_SIGMA,
    upper_bound=protocol.MAX_SIGMA,
  )
  flags.DEFINE_float(
    "gamma",
    None,
    "Share of the samples that vote, drawn at random; the query's without.",
    lower_bound=protocol.MIN_GAMMA,
    upper_bound=1.0,
  )
  flags.DEFINE_float(
    "delta",
    1e-5,
    "Of (epsilon, delta).",
    lower_bound=protocol.MIN_DELTA,
    upper_bound=protocol.MAX_DELTA,
  )
  flags.DEFINE_enum_class(
    "relation",
    config.Relation.ADD_REMOVE,
    config.Relation,
    "What epsilon hides: that a sample was added or removed, or replaced.",
  )
  flags.DEFINE_float(
    "max_epsilon",
    None,
    "The most that all answers of the ledger may cost together.",
    lower_bound=0.0,
  )
  flags.DEFINE_bool("yes", False, "Answer without asking.")
  flags.DEFINE_integer(
    "batch_size", 1024, "Images to encode at once.", lower_bound=1
  )


def _consent(text: str) -> None:
  print(text)
  if flags.FLAGS.yes:
    return
  if not sys.stdin.isatty():
    raise errors.EcosError("nobody is there to ask: give --yes to answer")
  try:
    reply = input("Answer? [y/N] ")
  except EOFError:
    reply = ""
  if reply.strip().lower() not in ("y", "yes"):
    raise errors.EcosError("not answered, and nothing spent")


def _mechanism(query: protocol.Query) -> mechanisms.Mechanism:
  f = flags.FLAGS
  if (f.epsilon is None) == (f.sigma is None):
    raise errors.ConfigError("give --epsilon or --sigma, and not both")
  gamma = query.terms.gamma if f.gamma is None else f.gamma
  relation = f.relation.value
  if f.sigma is not None:
    terms = protocol.Terms(f.sigma, gamma, f.delta, relation)
    return mechanisms.Mechanism(terms)
  return mechanisms.Mechanism.calibrated(f.epsilon, gamma, f.delta, relation)


def main(argv: list[str]) -> None:
  """Answers the query that the flags name."""
  del argv
  f = flags.FLAGS
  out, ledger_path = Path(f.out), Path(f.ledger)
  for name, path in (("out", out), ("ledger", ledger_path)):
    if not path.parent.is_dir() or path.is_dir():
      raise errors.EcosError(f"--{name}: {path} must be a file in a folder")
  query_bytes = protocol.read_file(Path(f.query))
  query = protocol.Query.from_bytes(query_bytes)
  features = f.data.startswith(_FEATURES)
  if not features:
    _encoder(query)

  def open_data() -> Data:
    if features:
      return _open_features(Path(f.data.removeprefix(_FEATURES)), query)
    return pools.open_source(f.data, f.data_dir)

  response = answer(
    query_bytes,
    open_data,
    _mechanism(query),
    ledger_path,
    _tag(f.data),
    consent=_consent,
    max_epsilon=f.max_epsilon,
    batch_size=f.batch_size,
  )
  protocol.write_file(out, response)
  print(f"wrote    {out} ({len(response)} bytes): carry it to the cloud")


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
