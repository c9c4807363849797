"""Speed of the heavy stages, beside other libraries and the machine's limit.

  python -m ecos_jax.benchmark --preset=quick|full --output=FILE

A *case* is a stage at a shape. Each implementation of a case runs in a child
process of its own, with its data loaded. One child measures at a time; the
others are paused (SIGSTOP), so that no idle thread pool spins. Every round
calls all implementations, beginning with another one each time. A row reports
the median of the rounds; the first round compiles and does not count. All
implementations may use all cores. The data lie in the system's folder for
temporary files; for `stream`, TMPDIR=FOLDER must name one on a disk.

encode: images
  The encoder on images in memory.
assign: n x d x k
  The nearest of k centroids for each of n rows in memory; the centroids are
  random rows.
fit: n x d x k
  One iteration of plain Lloyd: (T(b) - T(a)) / (b - a), where T(i) is the time
  of a whole fit of i iterations, all from the same centroids (fastkmeans and
  superkmeans start from random rows of their own).
converge: data-n x d x k
  A whole fit, start included, that reaches an inertia at most 0.1 % above the
  one at which scikit-learn's Lloyd from k-means++ converges; and one that
  reaches the inertia of its MiniBatchKMeans. Each library runs the fewest
  iterations of a fixed list that suffice. `blobs` are k Gaussians of log-normal
  sizes, `hog` the features of shifted MNIST digits.
stream: N x d x k
  One pass over a float16 bank on disk; `memory` does the same on rows in
  memory.
sample: N x d x R x B
  k-center inside R clusters, B samples in all.
train: b
  One training step of a small network on a batch of b images, out of 100 steps;
  checkpoints are not counted. `bare` is a plain jitted step over batches in
  memory.

`gemm` is the limit: a bare `jnp.dot` over the same blocks on the same devices
in one compiled loop. A rate above the machine's own peak is marked as suspect:
it was measured wrongly, or not every product was computed (superkmeans prunes
in `fit`).
"""
