import copy

import pytest

from configs import digits_client
from configs import digits_manual
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.config import checks
from ecos_jax.config import limits


def check_refused(config, *names):
  """Checks that the error names every one of these flags."""
  with pytest.raises(errors.ConfigError) as caught:
    checks.validate(config)
  for name in names:
    assert f"`{name}` " in str(caught.value)


def test_the_default_is_valid():
  checks.validate(config_lib.Config())


def test_all_errors_come_at_once_each_naming_its_flag():
  config = config_lib.Config()
  config.sampling.budget = 0
  config.codebook.size = -1
  config.privacy.gamma = 1.5
  config.privacy.delta = 0.0
  config.train.learning_rate = float("nan")
  check_refused(
    config,
    "sampling.budget",
    "codebook.size",
    "privacy.gamma",
    "privacy.delta",
    "train.learning_rate",
  )


@pytest.mark.parametrize("method", ["mak", "local"])
def test_methods_that_read_client_data_are_refused_with_a_remote_client(method):
  config = config_lib.Config()
  config.client.remote = True
  config.sampling.method = config_lib.Method(method)
  with pytest.raises(errors.ConfigError, match=r"`sampling\.method`"):
    checks.validate(config)


def test_a_noise_seed_is_refused_with_a_remote_client():
  config = config_lib.Config()
  config.client.remote = True
  config.privacy.insecure_noise_seed = 1
  with pytest.raises(errors.ConfigError, match="insecure_noise_seed"):
    checks.validate(config)


def test_budget_and_codebook_must_fit_into_the_pool():
  config = config_lib.Config()
  checks.check_pool(config, 1000)
  with pytest.raises(errors.ConfigError, match=r"sampling\.budget") as caught:
    checks.check_pool(config, 99)
  assert "codebook.size" in str(caught.value)


def test_wrong_fields_of_sampling_are_named():
  config = config_lib.Config()
  config.sampling.threshold = -1.0
  config.sampling.density_power = float("nan")
  config.sampling.likely = 0.0
  config.sampling.central = 1.1
  check_refused(
    config,
    "sampling.threshold",
    "sampling.density_power",
    "sampling.likely",
    "sampling.central",
  )


def test_all_of_the_pool_needs_no_budget():
  config = config_lib.Config()
  config.sampling.method = config_lib.Method.ALL
  checks.check_pool(config, 10)


@pytest.mark.parametrize(
  "arguments", ["", "demo", "smoke", "demo,mnist", "usps"]
)
def test_arguments_of_the_digits_config(arguments):
  checks.validate(digits_manual.get_config(arguments))


def test_unknown_argument_of_the_digits_config_gets_the_valid_ones():
  with pytest.raises(errors.ConfigError, match="smoke"):
    digits_manual.get_config("svhn")


def test_wrong_fields_of_distillation_are_named():
  config = config_lib.Config()
  config.train.task = config_lib.Task.DISTILL
  checks.validate(config)
  config.train.unlabelled_ratio = 1
  config.distill.temperature = 0.0
  config.distill.teacher_steps = 0
  check_refused(
    config,
    "train.unlabelled_ratio",
    "distill.temperature",
    "distill.teacher_steps",
  )


@pytest.mark.parametrize(
  "arguments", ["", "demo", "smoke,tight", "paper,mnist", "paper,tight", "usps"]
)
def test_arguments_of_the_client_config(arguments):
  config = digits_client.get_config(arguments)
  checks.validate(config)
  assert config.train.task is config_lib.Task.CLIENT
  assert config.sampling.budget == 5000 or "paper" not in arguments


def test_labels_that_cannot_be_are_refused_each_naming_its_flag():
  config = digits_client.get_config()
  config.labelling.neighbours = 0
  config.labelling.gamma = 1.5
  config.labelling.sigma_vote = -1.0
  config.labelling.max_epsilon = float("nan")
  config.labelling.threshold = float("inf")
  config.train.unlabelled = config_lib.Unlabelled.ABSTAINED
  config.privacy.relation = config_lib.Relation.REPLACE_ONE
  check_refused(
    config,
    "labelling.neighbours",
    "labelling.gamma",
    "labelling.sigma_vote",
    "labelling.max_epsilon",
    "labelling.threshold",
    "train.unlabelled_ratio",
    "privacy.relation",
  )


@pytest.mark.parametrize("task", ["manual", "client"])
def test_classes_that_nobody_tells_are_refused(task):
  config = config_lib.Config()
  config.sampling.classes = config_lib.Classes.BALANCED
  config.train.task = config_lib.Task(task)
  config.labelling.by = config_lib.LabelledBy.KNN
  with pytest.raises(
    errors.ConfigError, match=r"`sampling\.classes`=balanced needs"
  ):
    checks.validate(config)
  config.train.task = config_lib.Task.CLIENT
  config.labelling.by = config_lib.LabelledBy.VOTES
  checks.validate(config)


@pytest.mark.parametrize(
  ("unlabelled", "method", "said"),
  [
    ("covered", "random", "asks nothing"),
    ("abstained", "ecos", "needs labels by the client"),
  ],
)
def test_unlabelled_images_that_nobody_knows_are_refused(
  unlabelled, method, said
):
  config = config_lib.Config()
  config.train.unlabelled_ratio = 1
  config.train.unlabelled = config_lib.Unlabelled(unlabelled)
  config.sampling.method = config_lib.Method(method)
  with pytest.raises(
    errors.ConfigError, match=f"`train.unlabelled`={unlabelled} .*{said}"
  ):
    checks.validate(config)


def test_rounds_that_cannot_be_are_refused_each_naming_its_flag():
  config = config_lib.Config()
  config.codebook.first_round = 10
  checks.validate(config)
  for group, field, value, said in (
    ("codebook", "size", 10, "codebook.size`=10"),
    ("codebook", "first_round", -1, "codebook.first_round` must"),
    ("codebook", "algorithm", config_lib.Algorithm.MINI_BATCH, "algorithm"),
    ("codebook", "sample_per_centroid", 0, "sample_per_centroid"),
    ("sampling", "method", config_lib.Method.RANDOM, "sampling.method`=random"),
  ):
    wrong = copy.deepcopy(config)
    setattr(getattr(wrong, group), field, value)
    with pytest.raises(errors.ConfigError, match=rf"`\S*{said}"):
      checks.validate(wrong)


@pytest.mark.parametrize(
  ("name", "allowed", "refused"),
  [
    ("seed", (0, 2**32 - 1), (-1, 2**32)),
    ("sampling.budget", (1, 10**9), (0, float("inf"))),
    ("sampling.likely", (1e-9, 1.0), (0.0, 1.0001, float("nan"))),
    ("sampling.central", (0.1, 1.0), (0.0, 1.1)),
    ("privacy.insecure_noise_seed", (None, 0), (-1,)),
    ("privacy.sigma", (0.25, 16384.0), (0.24, 16385.0, None)),
    ("encoder.image_size", (None, 1, 1024), (0, 1025)),
    ("train.confidence", (1e-9, 1.0), (0.0, 1.1)),
    ("labelling.threshold", (-5.0, 1e12), (float("inf"), float("-inf"))),
  ],
)
def test_numbers_must_lie_in_their_intervals(name, allowed, refused):
  for value in allowed:
    config = config_lib.Config()
    _set(config, name, value)
    checks.validate(config)
  for value in refused:
    config = config_lib.Config()
    _set(config, name, value)
    check_refused(config, name)


def _set(config, name, value):
  *groups, last = name.split(".")
  setattr(getattr(config, groups[0]) if groups else config, last, value)


def test_no_clients_are_one_error():
  config = config_lib.Config()
  config.data.clients = 0
  with pytest.raises(errors.ConfigError) as refusal:
    checks.validate(config)
  assert str(refusal.value) == "`data.clients` must lie in [1, 10000], got 0"


def test_what_the_configuration_allows_a_message_takes():
  """The terms at the ends of the intervals are those of messages, too."""
  for sigma in (limits.MIN_SIGMA, limits.MAX_SIGMA):
    for gamma in (limits.MIN_GAMMA, 1.0):
      config = config_lib.Config()
      config.privacy.sigma, config.privacy.gamma = sigma, gamma
      checks.validate(config)
      messages.Terms(sigma, gamma, config.privacy.delta, "add_remove")


def test_questions_that_cannot_be_are_refused_each_naming_its_flag():
  config = config_lib.Config()
  for question in config_lib.Question:
    config.codebook.question = question
    checks.validate(config)
  config.codebook.votes = 65
  config.codebook.first_round = 10
  config.privacy.relation = config_lib.Relation.REPLACE_ONE
  config.sampling.method = config_lib.Method.ECOS_PAPER
  config.sampling.estimate = config_lib.Estimate.SCORE
  config.sampling.filter = config_lib.Filter.THRESHOLD
  with pytest.raises(errors.ConfigError) as refusal:
    checks.validate(config)
  for field in (
    "sampling.estimate",
    "sampling.filter",
    "codebook.votes",
    "codebook.first_round",
    "privacy.relation",
    "sampling.method",
  ):
    assert f"`{field}`" in str(refusal.value)


def test_labels_by_votes_need_votes_on_directions():
  config = digits_client.get_config("smoke")
  config.labelling.by = config_lib.LabelledBy.VOTES
  config.codebook.question = config_lib.Question.COUNTS
  with pytest.raises(errors.ConfigError, match=r"codebook\.question"):
    checks.validate(config)
  config.codebook.question = config_lib.Question.BOTH
  checks.validate(config)
