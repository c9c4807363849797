"""The paper's own figures, to stand beside a study's.

From Hong, Lyu, Zhou, Spranger, "Outsourcing Training without Uploading Data via
Efficient Collaborative Open-Source Sampling" (NeurIPS 2022, arXiv 2210.12575),
tables and figures; what was read off a figure is good to about its last digit.
"""

from typing import NamedTuple


class Quoted(NamedTuple):
  """Figures of the paper.

  Attributes:
    what: Of what, where in the paper, and how far its setting is ours.
    rows: A table; the first row is its head.
  """

  what: str
  rows: tuple[tuple[str, ...], ...]


_DIGITS = (
  "Its Digits are MNIST, **SVHN**, USPS, SynthDigits and MNIST-M. SVHN is "
  "not to be had here and is missing from our figures: UCI's optdigits stand "
  "in its place, and MNIST-M and SynthDigits are made anew. Its networks, "
  "learning rates and epochs are not known. So compare the order and the "
  "gaps of the methods, not the level."
)

TABLES = {
  "sml_budgets": Quoted(
    "Accuracy in %, mean over the clients (figure on label efficiency), with "
    f"FixMatch on the rest of the pool, which ours is without. {_DIGITS}",
    (
      ("split", "method", "1,000", "2,000", "4,000", "8,000", "10,000"),
      ("id_ood", "ECOS", "70.4", "78.5", "83.5", "86.4", "87.1"),
      ("id_ood", "Random", "67.7", "74.5", "79.5", "83.3", "83.8"),
      ("id_ood", "K-Center", "61.1", "70.5", "78.7", "83.3", "84.5"),
      ("id_ood", "all-ID ideal", *["87.3"] * 5),
      ("ood", "ECOS", "60.4", "67.3", "73.6", "75.6", "76.0"),
      ("ood", "Random", "58.0", "64.1", "68.5", "71.4", "73.1"),
    ),
  ),
  "sml_epsilon": Quoted(
    "Accuracy in % against epsilon (read off a figure of DomainNet, so the "
    "level says nothing of Digits). That its sigma are those of the first "
    "row is our inference: they reproduce its epsilon by its bound, for a "
    "sample that is replaced; ours is exact, for one that is added or "
    "removed.",
    (
      ("sigma", "70", "55", "40", "25", "10", "5"),
      ("its epsilon", "0.0785", "0.101", "0.1385", "0.2245", "0.583", "1.229"),
      ("accuracy", "83.72", "83.80", "84.11", "84.47", "85.02", "85.17"),
    ),
  ),
  "sml_centroids": Quoted(
    "Accuracy in % against R (a figure of DomainNet). It finds that R = 10 "
    "equals fine-tuning all of the network at the client, with about 200 "
    "times fewer multiply-adds at the client.",
    (
      ("R", "10", "50", "100", "200", "300"),
      ("accuracy", "83.1", "89.2", "89.1", "88.5", "88.3"),
    ),
  ),
  "bytes": Quoted(
    "Bytes, Digits. Its images are counted as float32, four bytes a channel; "
    f"ours as the bytes that they are. {_DIGITS}",
    (
      ("upload", "download", "ECOS"),
      ("3.5e7", "3.1e8", "2.9e4"),
    ),
  ),
  "acl": Quoted(
    "Accuracy in %, mean over the clients, Digits, budget 5,000, epsilon 5.3 "
    f"(ours: 2,000 requests, epsilon 5.0 for the labels). {_DIGITS}",
    (
      ("ECOS", "K-Center", "Random"),
      ("69.0", "67.4", "65.9"),
    ),
  ),
  "amc": Quoted(
    "Accuracy in %, mean over the clients, DomainNet: the paper has no AMC "
    "on Digits, so only the order of the methods can be compared.",
    (
      ("budget", "ECOS", "K-Center", "Random"),
      ("1,000", "78.6", "70.8", "76.4"),
      ("3,000", "83.5", "78.1", "81.6"),
    ),
  ),
}
