"""How fast the heavy stages are, beside the peers and the machine's limit.

  python -m ecos_jax.benchmark --preset=quick|full --output=FILE

A *cell* is a stage at a shape. Each implementation of a cell lives in a child
process of its own, with the data loaded; one at a time measures, the others are
stopped (SIGSTOP), so that no idle thread pool spins. Rounds go through the
implementations in rotated order; the figure is the median of the rounds, after
one call that does not count. All may use the same cores.

encode: images
  The encoder on images in memory.
assign: n x d x k
  The labels of n rows in memory, with k random ones of them as centroids.
fit: n x d x k
  One iteration of plain Lloyd: (T(b) - T(a)) / (b - a) over whole fits of a and
  b iterations, from the same centroids (fastkmeans and superkmeans begin from
  random rows of their own).
converge: data-n x d x k
  A whole fit, start included, to an inertia within .1 % of what scikit-learn's
  Lloyd from k-means++ converges to; and to what its MiniBatchKMeans reaches.
  Others run the fewest iterations on a ladder that suffice. `blobs` are k
  Gaussians of log-normal sizes, `hog` features of shifted MNIST digits.
stream: N x d x k
  One pass over a float16 bank on disk; `memory` is the same on rows in memory.
coverage: n x d x R
  The client's exact votes.
sample: N x d x R x B
  k-center inside R clusters, B samples in all.
train: b
  A step of training of a small network on a batch of b images, of 100 steps
  without checkpoints; `bare` is a plain jitted step over batches in memory.

`gemm` is the ceiling: a bare `jnp.dot` over the same blocks on the same devices
in one compiled loop (for coverage numpy's float64 product). A rate over the
machine's own peak is marked as suspect: it is not true, or not everything was
multiplied (superkmeans prunes in `fit`).
"""
