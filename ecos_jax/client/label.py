"""Labels a proxy with private data: `python -m ecos_jax.client.label`.

    python -m ecos_jax.client.label --request=label_request.safetensors \
      --data=folder:/private/images --epsilon=5 --max_epsilon=6 \
      --ledger=ledger.jsonl --out=labels.safetensors

The labels are those of `client.private_knn`: -1 where the client abstains or
the budget is used up. The order of things, the ledger and the consent are those
of `client.respond`. The number of samples is private and is printed nowhere.
"""

from collections.abc import Callable
import dataclasses
import datetime
from pathlib import Path
from typing import Any

from absl import flags

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.client import command
from ecos_jax.client import encoding
from ecos_jax.client import private_knn
from ecos_jax.client import respond
from ecos_jax.config import limits
from ecos_jax.encoders import registry
from ecos_jax.messages import wire
from ecos_jax.privacy import ledger


def answer(
  request_bytes: bytes,
  open_data: Callable[[], private_knn.Data],
  terms: messages.LabelTerms,
  ledger_path: Path,
  tag: str,
  *,
  consent: Callable[[str], None],
  epsilon: float | None,
  max_epsilon: float | None = None,
  encoder: registry.Encoder | None = None,
  batch_size: int = 1024,
  insecure_noise_seed: int | None = None,
) -> bytes:
  """Returns the labels of a request; the ledger holds them when this returns.

  The same request on the same data at the same terms and `epsilon` gets the
  stored labels and costs nothing.

  Args:
    request_bytes: From the cloud; not trusted.
    open_data: Opens the data; called last, if nothing refuses.
    terms: What the client decided.
    ledger_path: The ledger of these data.
    tag: Name of the data.
    consent: Is told what will happen, and raises to stop it.
    epsilon: The most that these labels may cost; None for no limit.
    max_epsilon: Budget of the ledger, at the delta of the terms.
    encoder: As in `encoding.encoder_of`.
    batch_size: Images to read and encode at once.
    insecure_noise_seed: As in `private_knn.Labeller`.

  Raises:
    EcosError: The request is refused, the ledger is damaged, not one answer is
      affordable, or the data do not fit.
  """
  request = messages.LabelRequest.from_bytes(request_bytes)
  fields = dataclasses.asdict(terms)
  if epsilon is not None:
    fields["epsilon"] = epsilon
  with ledger.locked(ledger_path) as book:
    stored = book.find(request.digest, tag, fields)
    if stored is not None:
      return respond.stored_response(stored)
    labeller = private_knn.plan(
      terms,
      len(request.features),
      epsilon=epsilon,
      composed=lambda cost: book.epsilon(terms, cost),
      max_epsilon=max_epsilon,
      insecure_noise_seed=insecure_noise_seed,
    )
    ledger_line = respond.describe_ledger(
      book, terms, labeller.cost, max_epsilon
    )
    consent(_describe(request, labeller, ledger_line))
    data = private_knn.label(
      request_bytes,
      open_data(),
      labeller,
      encoder=encoder,
      batch_size=batch_size,
    )
    now = datetime.datetime.now(datetime.UTC)
    book.append(
      ledger.Entry(
        time=now.isoformat(timespec="seconds"),
        data=tag,
        query_digest=request.digest,
        terms=fields,
        epsilon=labeller.cost.epsilon(terms.delta, terms.relation),
        cost=labeller.cost,
        response=data,
      )
    )
  return data


def outcome(requests: int, considered: int, answered: int) -> str:
  """Returns, in words, what became of the requests.

  Args:
    requests: How many there were.
    considered: How many, until the answers were used up.
    answered: How many got a label; the rest of the considered did not pass.
  """
  abstained = considered - answered
  text = (
    f"{answered:,} of {requests:,} answered, {abstained:,} of {considered:,} "
    f"abstained ({100 * abstained / considered:.1f} %)"
  )
  if considered < requests:
    rest = requests - considered
    text += f", {rest:,} not considered: the budget is used up"
  return text


def _describe(
  request: messages.LabelRequest,
  labeller: private_knn.Labeller,
  ledger_line: str,
) -> str:
  """Returns who asks what, what leaves, what it costs and what is left."""
  m, d = request.features.shape
  terms, proposed = labeller.terms, request.terms
  alone = labeller.cost.epsilon(terms.delta, terms.relation)
  settings = " and ".join(
    f"gamma {t.gamma:.4g}, k {t.neighbours}, sigma {t.sigma_screen:g} and "
    f"{t.sigma_vote:g}, threshold {t.threshold:g}"
    for t in dict.fromkeys((terms, proposed))
  )
  return "\n".join(
    (
      f"request  {request.digest[:16]}: which of {terms.classes} classes has "
      f"each of {m} public samples (encoder {request.encoder_name}, d = {d})?",
      f"leaves   up to {labeller.answers} labels, each a noisy vote of the "
      "nearest of a random part of your samples; -1 for the rest",
      f"terms    {settings}"
      + ("" if terms == proposed else " (the request's proposal)"),
      f"costs    epsilon {alone:.6g} (delta {terms.delta:g}, "
      f"{terms.relation}), however many labels are given",
      ledger_line,
    )
  )


def _define_flags() -> None:
  flags.DEFINE_string("request", None, "The request file.", required=True)
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


def _terms(proposed: messages.LabelTerms) -> messages.LabelTerms:
  """Returns the proposal with what the flags say otherwise."""
  f = flags.FLAGS
  names = ("gamma", "neighbours", "sigma_screen", "sigma_vote", "threshold")
  fields: dict[str, Any] = dataclasses.asdict(proposed)
  fields |= {"delta": f.delta, "relation": config.Relation.ADD_REMOVE.value}
  fields |= {n: f[n].value for n in names if f[n].value is not None}
  return messages.LabelTerms(**fields)


def main(argv: list[str]) -> None:
  """Labels the request that the flags name."""
  del argv
  f = flags.FLAGS
  out, ledger_path = command.checked_paths("request")
  request_bytes = wire.read_file(Path(f.request))
  request = messages.LabelRequest.from_bytes(request_bytes)
  encoder = encoding.encoder_of(request, encoding.own_encoder(), f.weights)
  classes = command.classes(request.terms.classes)
  tag = command.tag_of(f.data, f.data_dir)
  if classes is not None:
    # Other classes give other labels: an answer about these is no answer.
    tag += f" with classes {','.join(classes)}"
  data = answer(
    request_bytes,
    lambda: command.open_data(classes),
    _terms(request.terms),
    ledger_path,
    tag,
    consent=command.consent,
    epsilon=f.epsilon,
    max_epsilon=f.max_epsilon,
    encoder=encoder,
    batch_size=f.batch_size,
  )
  files.write(out, data)
  response = messages.LabelResponse.from_bytes(data)
  m, given = len(response.labels), int((response.labels >= 0).sum())
  print(f"labels   {outcome(m, response.considered, given)}")
  print(f"wrote    {out} ({len(data)} bytes): carry it to the cloud")


if __name__ == "__main__":
  _define_flags()
  cli.run(main)
