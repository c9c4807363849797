"""A server that chooses each question's terms by all that it has seen.

By dynamic programming over the loss so far: the largest delta of any server
that may ask only what is allowed.
"""

import numpy as np

from tests.privacy import references

_HALF = 8000  # grid points on each side of a loss of 0


def losses(release, relation):
  """Returns the loss and its probability, one pair for each direction."""
  p0, m = references.noise(release.sigma, release.gamma, release.bins)
  if release.bins == 2 and not release.weight:
    p0, m = _displaced(release.sigma, release.gamma)
  elif release.shift > 1:
    p0, m = _signed(release)
  kept = (p0 > 1e-250) & (m > 1e-250)
  p0, m = p0[kept], m[kept]
  remove, add = (np.log(m / p0), m), (np.log(p0 / m), p0)
  if relation == "add_remove":
    return [remove, add]
  loss = np.add.outer(remove[0], add[0]).ravel()
  return [(loss, np.outer(remove[1], add[1]).ravel())]


def _displaced(sigma, gamma):
  """Two counts, one up and one down, flattened."""
  up, _ = references.noise(sigma, 0.0)
  p0 = np.outer(up, up)
  moved = np.outer(np.roll(up, 1), np.roll(up, -1))
  return p0.ravel(), ((1 - gamma) * p0 + gamma * moved).ravel()


def _signed(release):
  """The sum of v_i z_i, where a sample adds v to the counts with noise z."""
  one, _ = references.noise(release.sigma, 0.0)
  law = np.ones(1)
  for _ in range(release.bins):
    law = np.convolve(law, one)
  if release.weight:
    apart = np.zeros(release.weight * (len(one) - 1) + 1)
    apart[:: release.weight] = one
    law = np.convolve(law, apart)
  still, moved = law[release.shift :], law[: -release.shift]
  return still, (1 - release.gamma) * still + release.gamma * moved


def delta(options, allowed, epsilon, relation):
  """Returns the delta of the worst server, and its largest number of answers.

  Args:
    options: Releases, each of which it may ask for any number of times.
    allowed: Whether a tuple with the times of each option may be asked for.
    epsilon: Of (epsilon, delta).
    relation: `add_remove` or `replace_one`.
  """
  # Beyond the grid, hardly anything is left to gain.
  step = (epsilon + 5) / _HALF
  grid = np.arange(-_HALF, _HALF + 1) * step
  final = np.maximum(-np.expm1(epsilon - grid), 0)
  pairs = [losses(option, relation) for option in options]
  longest = 0
  worst = []
  for direction in range(len(pairs[0])):
    # Rounded down, so never more than the worst server's.
    masses = []
    for pair in pairs:
      loss, mass = pair[direction]
      at = np.clip(np.floor(loss / step), -2 * _HALF, 2 * _HALF).astype(int)
      masses.append(np.bincount(at + 2 * _HALF, mass, 4 * _HALF + 1))
    known = {}

    def value(asked, masses=masses, known=known):
      nonlocal longest
      longest = max(longest, sum(asked))
      if asked not in known:
        best = final
        for i, mass in enumerate(masses):
          more = (*asked[:i], asked[i] + 1, *asked[i + 1 :])
          if allowed(more):
            after = np.pad(value(more), 2 * _HALF, mode="edge")
            size = len(after) + len(mass)
            both = np.fft.rfft(after, size) * np.fft.rfft(mass[::-1], size)
            both = np.fft.irfft(both, size)[len(mass) - 1 : len(after)]
            best = np.maximum(best, both)
        known[asked] = best
      return known[asked]

    worst.append(value((0,) * len(options))[_HALF])
  return max(worst), longest
