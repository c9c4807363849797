import dataclasses
import math

import numpy as np
import pytest

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.privacy import spending

# What one answer of sigma 10 costs, by brute force over the outputs.
ONE = {"add_remove": 0.276, "replace_one": 0.390}


def _scores(sigma=10.0, delta=1e-5, relation="add_remove", private=True, n=0):
  statement = messages.Statement(
    sigma,
    0.8,
    delta,
    relation,
    accounting.epsilon(sigma, 0.8, delta, relation),
    private,
  )
  return messages.Response(np.array([n, 5]), "cd" * 32, statement)


def _labels(private=True):
  terms = messages.LabelTerms(3, 9, 40.0, 30.0, 5.0, 0.5, 1e-5, "add_remove")
  labels = np.array([2, -1, 0], np.int32)
  return messages.LabelResponse(
    labels, "ef" * 32, terms, 2, 3, epsilon=0.2, private=private
  )


def _entry(answer):
  cost = accounting.cost(answer)
  return ledger.Entry("now", "x", "q", {}, 0.0, cost, answer.to_bytes())


def test_nothing_asked_is_nothing_spent():
  spent = spending.spent({}, fixed=True)
  assert (spent.epsilon, spent.delta, spent.epsilon_answers) == (0, 0, 0)
  assert spent.relation is spent.scores_epsilon is spent.paper_epsilon is None


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_one_answer_costs_what_it_states(relation):
  answer = _scores(relation=relation)
  spent = spending.spent({"scores": answer}, fixed=True)
  assert spent.epsilon == pytest.approx(ONE[relation], abs=1e-3)
  assert spent.scores_epsilon == answer.statement.epsilon
  assert (spent.relation, spent.delta) == (relation, 1e-5)
  assert spent.paper_epsilon == accounting.paper_epsilon(10.0, 0.8, 1e-5)


def test_two_fixed_answers_compose_and_two_chosen_ones_cost_more():
  # Two Gaussians of sigma s sqrt 2 cost what one of sigma s does, nearly so
  # with subsamples.
  answers = {
    "first": _scores(10 * math.sqrt(2), n=1),
    "scores": _scores(10 * math.sqrt(2)),
  }
  fixed = spending.spent(answers, fixed=True)
  assert fixed.epsilon == pytest.approx(ONE["add_remove"], rel=2e-2)
  assert fixed.first_epsilon == fixed.scores_epsilon < fixed.epsilon
  assert spending.spent(answers, fixed=False).epsilon > fixed.epsilon


def test_an_answer_in_the_ledger_counts_once_and_a_redone_one_as_well():
  answer, deleted = _scores(), _scores(n=1)
  once = spending.spent({"scores": answer}, [_entry(answer)], fixed=True)
  assert once == spending.spent({"scores": answer}, fixed=True)
  twice = spending.spent(
    {"scores": answer}, [_entry(deleted), _entry(answer)], fixed=True
  )
  assert twice.epsilon_answers == 2
  # Terms may depend on the answer that was deleted: no better than composed.
  composed = spending.spent({"first": deleted, "scores": answer}, fixed=True)
  assert twice.epsilon > composed.epsilon


def test_the_strictest_delta_and_a_relation_that_holds_for_all_are_told():
  first, second = _scores(delta=1e-6, n=1), _scores(relation="replace_one")
  spent = spending.spent({"first": first, "scores": second}, fixed=True)
  assert (spent.delta, spent.relation) == (1e-6, "replace_one")
  # Labels have a bound for add_remove alone.
  spent = spending.spent({"scores": second, "labels": _labels()}, fixed=True)
  assert spent.relation == config.Relation.ADD_REMOVE.value
  assert spent.epsilon > ONE["add_remove"]
  # Not what it states.
  cost = accounting.cost(_labels())
  assert spent.labels_epsilon == cost.epsilon(1e-5, "add_remove") != 0.2


@pytest.mark.parametrize("name", ["scores", "labels"])
def test_noise_from_a_seed_has_no_epsilon(name):
  answers = {"scores": _scores(), "labels": _labels()}
  real = spending.spent(answers, fixed=True)
  answers[name] = {"scores": _scores, "labels": _labels}[name](private=False)
  spent = spending.spent(answers, fixed=True)
  assert spent.epsilon is spent.scores_epsilon is spent.labels_epsilon is None
  assert spent.paper_epsilon is None
  assert spent.noise_epsilon == real.epsilon


def test_a_seeded_answer_in_the_ledger_makes_the_run_not_private():
  seeded = _entry(_scores(private=False, n=1))
  spent = spending.spent({"scores": _scores()}, [seeded], fixed=True)
  assert spent.epsilon is None


def test_data_used_without_noise_have_no_epsilon():
  spent = spending.spent({"scores": _scores()}, fixed=True, exposed=True)
  assert spent.epsilon is spent.noise_epsilon is spent.delta is None


def test_an_epsilon_that_a_client_states_is_not_believed():
  answer = _scores()
  lower = dataclasses.replace(answer.statement, epsilon=0.001)
  forged = dataclasses.replace(answer, statement=lower)
  spent = spending.spent({"scores": forged}, fixed=True)
  assert spent.scores_epsilon == spent.epsilon
  assert spent.epsilon == pytest.approx(ONE["add_remove"], abs=1e-3)


def test_the_unit_is_told_and_two_units_do_not_add_up():
  by_sample = _scores()
  assert spending.spent({"scores": by_sample}, fixed=True).unit == "sample"
  statement = dataclasses.replace(by_sample.statement, unit="person")
  by_person = dataclasses.replace(by_sample, statement=statement)
  assert spending.spent({"scores": by_person}, fixed=True).unit == "person"
  assert spending.spent({}, fixed=True).unit is None
  for answers, entries in (
    ({"first": by_sample, "scores": by_person}, ()),
    ({"scores": by_person}, [_entry(by_sample)]),
  ):
    with pytest.raises(errors.EcosError, match="cannot be added up"):
      spending.spent(answers, entries, fixed=True)


def test_what_several_clients_pay_each_and_together():
  # Together, two of sigma 10 sqrt 2 cost a person nearly what one of 10 does.
  pair = [_scores(10 * 2**0.5, n=n) for n in (1, 2)]
  cost = spending.of_clients(pair)
  assert cost.least_epsilon == cost.most_epsilon < ONE["add_remove"]
  assert cost.together_epsilon == pytest.approx(ONE["add_remove"], abs=0.01)
  dearer = spending.of_clients([*pair, _scores()])
  assert dearer.least_epsilon == cost.least_epsilon
  assert dearer.most_epsilon == pytest.approx(ONE["add_remove"], abs=1e-3)
  person = dataclasses.replace(pair[0].statement, unit="person")
  other = dataclasses.replace(pair[0], statement=person)
  assert spending.of_clients([other, pair[1]]).together_epsilon is None
  seeded = spending.of_clients([*pair, _scores(private=False)])
  assert set(dataclasses.astuple(seeded)) == {None}
