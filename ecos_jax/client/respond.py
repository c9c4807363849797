"""Answers a query about private data: `python -m ecos_jax.client.respond`.

    python -m ecos_jax.client.respond --query=query.safetensors \
      --data=folder:/private/images --epsilon=0.5 --ledger=ledger.jsonl \
      --create_ledger --max_epsilon=2 --out=response.safetensors

The first time, `--create_ledger` fixes what all answers about these data may
ever cost together; later answers leave it out.
It runs beside the private data and needs nothing of the cloud but the query.
Every sample votes for its nearest centroid; the votes of a random subsample are
counted, and the counts leave with noise on them. With --unit=person each person
has one vote, however many samples are theirs. The query only proposes terms:
the client decides, and is told what it will cost before it is asked.

The number of samples is private too, so it is never printed, not even as
progress.
"""

from pathlib import Path

from absl import flags

from ecos_jax import cli
from ecos_jax import messages
from ecos_jax.client import answering
from ecos_jax.client import command
from ecos_jax.client import encoding
from ecos_jax.config import limits
from ecos_jax.config import spec
from ecos_jax.messages import wire
from ecos_jax.privacy import mechanisms


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
  encoder = None
  if not isinstance(spec.parse(f.data), spec.Features):
    encoder = command.encoder_of(query)
  guarantee = command.guarantee(ledger)

  def opened() -> encoding.Private:
    data = command.open_data()
    persons = command.persons_of(data, guarantee)
    return encoding.opened(query, data, encoder, f.batch_size, persons=persons)

  answered = answering.answer_query(
    query,
    opened,
    mechanisms.Mechanism.of(
      f.epsilon,
      f.sigma,
      f.gamma,
      guarantee.delta,
      guarantee.relation,
      unit=guarantee.unit,
    ),
    answering.Account(
      ledger,
      command.tag_of(f.data, f.data_dir, f.persons),
      command.consent,
    ),
  )
  command.write(out, answered.answer.to_bytes(), answered.stored)


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
