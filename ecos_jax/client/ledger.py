"""Shows, checks and makes ledgers: `python -m ecos_jax.client.ledger ACTION`.

    python -m ecos_jax.client.ledger create --ledger=LEDGER --max_epsilon=2
    python -m ecos_jax.client.ledger show --ledger=LEDGER
    python -m ecos_jax.client.ledger verify --ledger=LEDGER
    python -m ecos_jax.client.ledger upgrade --ledger=OLD --out=NEW \
      --max_epsilon=2

`create` makes a ledger with a budget, as `--create_ledger` of the other
commands does. `show` prints the budget, every answer with its cost, and what is
left. `verify` checks every line; it fails if one is damaged, missing or moved,
or if the last one is incomplete. `upgrade` copies the answers of a ledger that
an older version of ecos_jax made, and leaves that one as it is.
"""

import math
from pathlib import Path

from absl import flags

from ecos_jax import cli
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import text_tables
from ecos_jax.client import ledger_flags
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger


def _noise(cost: accounting.Cost) -> str:
  return ", ".join(
    f"{r.sigma:.6g}" + (f" x {r.times:,}" if r.times > 1 else "")
    for r in cost.releases
  )


def _table(book: ledger.Ledger) -> str:
  """Returns a line for each answer, with the total up to it."""
  costs: list[accounting.Cost] = []
  rows = [("time", "data", "question", "kind", "noise", "epsilon", "total")]
  for entry in book.entries:
    costs.append(entry.cost)
    rows.append(
      (
        entry.time,
        files.shown(entry.data),
        entry.query_digest[:16],
        "labels" if "neighbours" in entry.terms else "scores",
        _noise(entry.cost),
        f"{entry.epsilon:.4g}",
        f"{book.total(costs):.4g}",
      )
    )
  return text_tables.aligned(rows, left=range(5))


def _show(path: Path) -> None:
  book = ledger.read(path)
  print(f"ledger   {path}: {book.guarantee}")
  if book.entries:
    print(_table(book))
  spent, most = book.epsilon(), book.guarantee.max_epsilon
  left = (
    "without a limit" if math.isinf(most) else f"{most - spent:.6g} is left"
  )
  print(f"spent    epsilon {spent:.6g}, all answers together; {left}")


def _verify(path: Path) -> None:
  book = ledger.read(path)
  if book.incomplete:
    raise ledger.LedgerError(
      f"`ledger`: the last line of {path} is incomplete: its answer never "
      "left, so the next answer removes it"
    )
  print(f"ledger   {path}: all {len(book.entries)} answers are there and whole")


def _upgrade(path: Path) -> None:
  if flags.FLAGS.out is None:
    raise errors.EcosError("`out` must name the new ledger")
  out = Path(flags.FLAGS.out)
  book = ledger.upgrade(path, out, **ledger_flags.fixed())
  print(
    f"wrote    {out}: {len(book.entries)} answers; use it from now on, and "
    f"never {path} again"
  )
  _show(out)


def _create(path: Path) -> None:
  print(f"ledger   {path}: {ledger_flags.create(path)}")


_ACTIONS = {
  "create": _create,
  "show": _show,
  "upgrade": _upgrade,
  "verify": _verify,
}


def main(argv: list[str]) -> None:
  """Does what the command line says."""
  _ACTIONS[argv[1]](Path(flags.FLAGS.ledger))


if __name__ == "__main__":
  ledger_flags.define()
  cli.define_path("out", None, "upgrade: the new ledger.")
  cli.run(main, actions=_ACTIONS)
