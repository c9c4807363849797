"""What runs came to: a table on the terminal, and one HTML page to look at.

  python -m ecos_jax.report --workdir=DIR[,DIR...] [--out=FILE]
    [--projection=umap]

The page is one file that asks for no other: it can be sent, archived, opened
without a network. It says what was sampled, from where, what that cost in
privacy and bytes, and whether it helped; with several runs, how they compare.

It is made of what the cloud has: the artefacts in a workdir, and images of the
public pool where that is still to be had. What a simulated client has is not
read, its ledger included. What is read is compared with the digests in the
manifests, and refused if it is damaged; of the bank and the images, however,
only a random sample is looked at, whatever the size of the pool: `--verify` of
`ecos_jax.train` reads all of a bank.
"""
