"""Tables of many runs: methods, clients, budgets, seeds, any field.

python -m ecos_jax.study --config=configs/studies/sml_budgets.py --workdir=W

A study file returns a `plan.Study` from get_config(): a configuration, the
fields of it that vary, and how the tables and pictures lie. Each cell is one
run, with the result that `ecos_jax.train` gives alone; stages that cells have
in common are made once (`store`). Cells run in one process a core. The same
command goes on after any interruption; a cell that fails is shown with its
error and with the command that runs it alone, the others go on.
"""
