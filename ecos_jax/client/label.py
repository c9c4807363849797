"""Labels a proxy with private data: `python -m ecos_jax.client.label`.

    python -m ecos_jax.client.label --request=label_request.safetensors \
      --data=folder:/private/images --epsilon=5 --ledger=ledger.jsonl \
      --create_ledger --max_epsilon=6 --out=labels.safetensors

The labels are those of `client.private_knn`: -1 where the client abstains or
the budget is used up. Ledger and consent are as in `client.respond`. The number
of samples is private and is never printed.
"""

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags
import numpy as np

from ecos_jax import cli
from ecos_jax import messages
from ecos_jax.client import answering
from ecos_jax.client import command
from ecos_jax.client import encoding
from ecos_jax.client import private_knn
from ecos_jax.config import limits
from ecos_jax.messages import wire
from ecos_jax.privacy import ledger


def _define_flags() -> None:
  cli.define_path("request", None, "The request file.", required=True)
  command.define_shared_flags(
    "folder:DIR with a folder for each class (see --classes), images:FILE.npz "
    "(uint8 images and integer labels), or tfds:NAME:SPLIT; labels as the "
    "cloud numbers them."
  )
  command.define_classes()
  flags.DEFINE_float(
    "epsilon",
    None,
    "The most these labels may cost: decides how many are given.",
    lower_bound=0.0,
    required=True,
  )
  proposal = "the request's without"
  flags.DEFINE_float(
    "gamma",
    None,
    f"Share of the samples in a subsample; {proposal}.",
    lower_bound=limits.MIN_GAMMA,
    upper_bound=1.0,
  )
  flags.DEFINE_integer(
    "neighbours", None, f"How many vote; {proposal}.", lower_bound=1
  )
  for name, what in (
    ("sigma_screen", "Noise on the largest count"),
    ("sigma_vote", "Noise on each count"),
  ):
    flags.DEFINE_float(
      name,
      None,
      f"{what}, in votes; {proposal}.",
      lower_bound=limits.MIN_SIGMA,
      upper_bound=limits.MAX_SIGMA,
    )
  flags.DEFINE_float(
    "threshold", None, f"Votes from which an answer is given; {proposal}."
  )


def _terms(
  proposed: messages.LabelTerms, guarantee: ledger.Guarantee
) -> messages.LabelTerms:
  """Returns the proposed terms, changed by the ledger and by flags."""
  f = flags.FLAGS
  names = ("gamma", "neighbours", "sigma_screen", "sigma_vote", "threshold")
  fields: dict[str, Any] = dataclasses.asdict(proposed)
  fields |= {"delta": guarantee.delta, "relation": guarantee.relation}
  fields |= {"unit": guarantee.unit}
  fields |= {n: f[n].value for n in names if f[n].value is not None}
  return messages.LabelTerms(**fields)


def main(argv: list[str]) -> None:
  """Labels the request that the flags name."""
  del argv
  f = flags.FLAGS
  out, path = command.checked_paths("request")
  request = messages.LabelRequest.from_bytes(wire.read_file(Path(f.request)))
  encoder = command.encoder_of(request)
  classes = command.classes(request.terms.classes)
  guarantee = command.guarantee(path)
  tag = command.tag_of(f.data, f.data_dir, classes, f.persons)

  def opened() -> encoding.Private:
    data = command.open_data(classes, encoding.ground_of(request))
    return encoding.opened(
      request,
      data,
      encoder,
      f.batch_size,
      labels=data.labels(np.arange(len(data))),
      persons=command.persons_of(data, guarantee),
    )

  answered = answering.answer_request(
    request,
    opened,
    _terms(request.terms, guarantee),
    answering.Account(path, tag, command.consent),
    epsilon=f.epsilon,
  )
  labels = answered.answer.labels
  given = int((labels >= 0).sum())
  told = private_knn.outcome(len(labels), answered.answer.considered, given)
  print(f"labels   {told}")
  command.write(out, answered.answer.to_bytes(), answered.stored)


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
