"""Tables and charts of many runs: methods, clients, budgets, seeds, any field.

python -m ecos_jax.study --config=configs/studies/sml_budgets.py --workdir=W

The get_config() of a study file returns a `plan.Study`: a configuration, the
fields of it that vary, and the tables and plots to show. Each *trial* is one
run, with the result that `ecos_jax.train` gives alone. Stages that trials share
run once (`trial`). Trials run in parallel, one process per core. The same
command goes on after any interruption. A trial that fails is shown with its
error and with the command that runs it alone; the others go on.
"""
