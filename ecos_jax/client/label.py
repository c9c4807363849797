"""Labels a proxy with private data: `python -m ecos_jax.client.label`.

    python -m ecos_jax.client.label --request=label_request.safetensors \
      --data=folder:/private/images --classes=cat,dog --epsilon=5 \
      --ledger=ledger.jsonl --create_ledger --max_epsilon=6 \
      --out=labels.safetensors

The labels are those of `client.private_knn`: -1 where the client abstains or
the budget is used up. Ledger and consent are as in `client.respond`. The number
of samples is private and is never printed.
"""

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags

from ecos_jax import cli
from ecos_jax import messages
from ecos_jax.client import answering
from ecos_jax.client import command
from ecos_jax.client import private_knn
from ecos_jax.config import limits
from ecos_jax.messages import wire

_TERMS = "gamma", "neighbours", "sigma_screen", "sigma_vote", "threshold"


def _define_flags() -> None:
  cli.define_path("request", None, "The request file.", required=True)
  command.define_shared_flags(
    "folder:DIR with a folder for each class (see --classes), images:FILE.npz "
    "(uint8 images and integer labels), or tfds:NAME:SPLIT; labels as the "
    "cloud numbers them."
  )
  flags.DEFINE_float(
    "epsilon",
    None,
    "The most these labels may cost: decides how many are given.",
    lower_bound=0.0,
    required=True,
  )
  proposal = "by default what the request proposes"
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


def main(argv: list[str]) -> None:
  """Labels the request that the flags name."""
  del argv
  f = flags.FLAGS
  out, path = command.checked_paths("request")
  request = messages.LabelRequest.from_bytes(wire.read_file(Path(f.request)))
  guarantee, data, account = command.prepare(request, path)
  given: dict[str, Any] = {
    n: f[n].value for n in _TERMS if f[n].value is not None
  }
  terms = dataclasses.replace(request.terms, **given)
  answered = answering.answer_request(
    request,
    data,
    answering.label_terms(terms, guarantee),
    account,
    epsilon=f.epsilon,
  )
  labels = answered.answer.labels
  labelled = int((labels >= 0).sum())
  told = private_knn.outcome(len(labels), answered.answer.considered, labelled)
  print(f"labels   {told}")
  command.write(out, answered)


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
