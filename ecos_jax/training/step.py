"""One step of training: the state, the optimizer, and the jitted update."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from ecos_jax import config as config_lib
from ecos_jax.training import tasks

_WARMUP = 0.1  # share of the steps

# Arrays by name: `step`, `key`, and trees `params`, `statistics`, `optimizer`.
State = dict[str, Any]
Shardings = tuple[jax.sharding.NamedSharding, jax.sharding.NamedSharding]


def shardings(mesh: jax.sharding.Mesh) -> Shardings:
  """Returns two shardings: replicated, and split over the axis `data`."""
  return (
    jax.sharding.NamedSharding(mesh, jax.P()),
    jax.sharding.NamedSharding(mesh, jax.P("data")),
  )


def adamw(config: config_lib.Train) -> optax.GradientTransformation:
  """Returns AdamW with warm-up and cosine decay; only matrices decay."""
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=int(_WARMUP * config.steps),
    decay_steps=config.steps,
  )

  def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

  return optax.adamw(schedule, weight_decay=config.weight_decay, mask=matrices)


def start(
  model: nnx.Module, optimizer: optax.GradientTransformation, seed: int
) -> tuple[Any, State]:
  """Returns the graph of a network and the state of a new run."""
  graph, params, statistics = nnx.split(model, nnx.Param, ...)
  params = nnx.to_pure_dict(params)
  return graph, {
    "step": jnp.zeros((), jnp.int32),
    "key": jax.random.key_data(jax.random.key(seed)),
    "params": params,
    "statistics": nnx.to_pure_dict(statistics),
    "optimizer": optimizer.init(params),
  }


def network(graph: Any, state: State) -> nnx.Module:
  """Returns the network of a state, in evaluation mode."""
  model = nnx.merge(graph, state["params"], state["statistics"])
  model.eval()
  return model


def jitted(
  task: tasks.Task,
  graph: Any,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> Callable[[State, tasks.Batches], tuple[State, tasks.Metrics]]:
  """Returns the jitted step, which reuses the buffers of the state it is given.

  Args:
    task: Its loss.
    graph: From `start`.
    optimizer: What `start` took.
    mesh: The state is replicated over it, batches are split over `data`.

  Returns:
    Maps the state and the batches to the next state and the metrics.
  """
  everywhere, split = shardings(mesh)

  def step(state: State, batches: tasks.Batches) -> tuple[State, tasks.Metrics]:
    key = jax.random.fold_in(
      jax.random.wrap_key_data(state["key"]), state["step"]
    )

    def loss(params: Any) -> tuple[jax.Array, tuple[Any, tasks.Metrics]]:
      model = nnx.merge(graph, params, state["statistics"], copy=True)
      value, metrics = task.loss(model, batches, key)
      statistics = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
      return value, (statistics, metrics)

    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, (statistics, metrics)), gradients = gradient(state["params"])
    updates, optimizer_state = optimizer.update(
      gradients, state["optimizer"], state["params"]
    )
    new = {
      "step": state["step"] + 1,
      "key": state["key"],
      "params": optax.apply_updates(state["params"], updates),
      "statistics": statistics,
      "optimizer": optimizer_state,
    }
    return new, {"loss": value, **metrics}

  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(everywhere, split),
    out_shardings=(everywhere, everywhere),
  )
