"""What the owner of private data reads before an answer is given."""

import math

from ecos_jax import config
from ecos_jax import messages
from ecos_jax.client import private_knn
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger as ledger_lib
from ecos_jax.privacy import mechanisms


def scores(query: messages.Query, mechanism: mechanisms.Mechanism) -> str:
  """Returns who asks what, what leaves and what it costs."""
  asks, leaves = [], []
  if query.centroids is not None:
    r = len(query.centroids)
    asks.append(f"to which of {r} centroids is each of your samples nearest?")
    leaves.append(f"{r} integers: counts")
  if query.directions is not None:
    rows, p = query.sums
    asks.append(
      f"on which side of the pool's mean does each lie, on the {query.votes} "
      f"of {p - 1} directions where it is farthest from it?"
    )
    by_class = f", for each of {rows} classes" if query.classes else ""
    leaves.append(f"{rows * p} integers: sums of these votes{by_class}")
  terms, proposed = mechanism.terms, query.terms
  unit = terms.unit
  paper = accounting.paper_epsilon(terms.sigma, terms.gamma, terms.delta)
  return "\n".join(
    (
      f"query    {query.digest[:16]} (encoder {query.encoder_name}, d = "
      f"{query.dimension}): {' And '.join(asks)}",
      f"leaves   {'; '.join(leaves)}; of {_voters(terms)}, each with noise of "
      f"scale {mechanism.scale:.4g} (sigma {terms.sigma:.4g}); these terms; "
      "and a random number that your answers to this query share",
      f"costs    epsilon {mechanism.statement.epsilon:.6g} per {unit} (delta "
      f"{terms.delta:g}, {terms.relation}); the paper's bound for the same "
      f"noise is {paper:.4g}",
      f"         the query proposes sigma {proposed.sigma:g}, gamma "
      f"{proposed.gamma:.4g}, delta {proposed.delta:g}, {proposed.relation}, "
      f"per {proposed.unit}",
    )
  )


def _voters(terms: messages.Terms | messages.LabelTerms) -> str:
  """Returns whose votes are counted."""
  if terms.unit == config.Unit.PERSON.value:
    return f"one sample each of a random {terms.gamma:.4g} of the persons"
  return f"a random {terms.gamma:.4g} of the samples"


def labels(
  request: messages.LabelRequest, labeller: private_knn.Labeller
) -> str:
  """Returns who asks what, what leaves and what it costs."""
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
      f"nearest among {_voters(terms)}; -1 for the rest",
      f"terms    {settings}"
      + ("" if terms == proposed else " (the request's proposal)"),
      f"costs    epsilon {alone:.6g} per {terms.unit} (delta "
      f"{terms.delta:g}, {terms.relation}), however many labels are given",
    )
  )


def ledger(book: ledger_lib.Ledger, cost: accounting.Cost) -> str:
  """Returns what the ledger holds before and after an answer, and the rest."""
  guarantee, total = book.guarantee, book.epsilon(cost)
  left = "it has no limit"
  if math.isfinite(guarantee.max_epsilon):
    left = (
      f"{guarantee.max_epsilon - total:.6g} is left of "
      f"{guarantee.max_epsilon:g}"
    )
  return (
    f"ledger   epsilon {book.epsilon():.6g} spent before, {total:.6g} after, "
    f"all answers together (delta {guarantee.delta:g}, {guarantee.relation}); "
    f"{left}"
  )
