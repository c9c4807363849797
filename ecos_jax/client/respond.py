"""Answers a query about private data: `python -m ecos_jax.client.respond`.

    python -m ecos_jax.client.respond --query=query.safetensors \
      --data=folder:/private/images --epsilon=0.5 --ledger=ledger.jsonl \
      --create_ledger --max_epsilon=2 --out=response.safetensors

The first time, `--create_ledger` fixes what all answers about these data may
ever cost together; later answers leave it out.
It runs beside the private data and needs nothing of the cloud but the query.
Every sample votes: for its nearest centroid, or 1 or -1 on some directions. The
votes of a random subsample are added up, and the sums leave with noise on them.
Where the ledger's unit is the person, of each person one random sample votes.
The query only proposes terms: the client decides, and is told what it will cost
before it is asked.

The number of samples is private too, so it is never printed, not even as
progress.
"""

from pathlib import Path

from absl import flags

from ecos_jax import cli
from ecos_jax import messages
from ecos_jax.client import answering
from ecos_jax.client import command
from ecos_jax.config import limits
from ecos_jax.messages import wire


def _define_flags() -> None:
  cli.define_path("query", None, "The query file.", required=True)
  command.define_shared_flags(
    "folder:DIR, images:FILE.npy or .npz (uint8), tfds:NAME:SPLIT, "
    "webdataset:PATTERN, parquet:PATH, or features:PATH (float [n, d], made "
    "with the encoder of the query). "
    "If the query asks by class, images with labels as the cloud numbers them."
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
    "Instead of --epsilon: the noise, in votes where a sample has one, else in "
    "units of the length of a sample's votes.",
    lower_bound=limits.MIN_SIGMA,
    upper_bound=limits.MAX_SIGMA,
  )
  flags.DEFINE_float(
    "gamma",
    answering.GAMMA,
    "Share of the samples (or persons) that vote, drawn at random.",
    lower_bound=limits.MIN_GAMMA,
    upper_bound=1.0,
  )


def main(argv: list[str]) -> None:
  """Answers the query that the flags name."""
  del argv
  f = flags.FLAGS
  out, ledger = command.checked_paths("query")
  query = messages.Query.from_bytes(wire.read_file(Path(f.query)))
  guarantee, data, account = command.prepare(query, ledger)
  mechanism = answering.mechanism_of(
    query, guarantee, f.epsilon, f.sigma, f.gamma
  )
  answered = answering.answer_query(query, data, mechanism, account)
  command.write(out, answered)


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
