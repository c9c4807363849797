"""The results of runs: a table on the terminal, and one HTML page.

  python -m ecos_jax.report --workdir=DIR[,DIR...] [--out=FILE]

The page is a single file that loads nothing else: it can be sent, archived, and
opened without a network. It shows what was sampled, from where, what that cost
in privacy and bytes, whether it helped, and how several runs compare.

It is made from what the cloud has: the artefacts in a workdir, and images of
the public pool if they can still be read. Nothing of a simulated client is
read, not even its ledger. Artefacts are compared with the digests in the
manifests, and refused if they are damaged. Of the bank and the images only a
random sample is read, whatever the size of the pool.
"""
