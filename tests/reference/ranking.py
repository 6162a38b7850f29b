"""Ranks and measures by counting, comparing and trying every order."""

import itertools
import math
from statistics import fmean


def rank(values):
    """Rank from 1 for the lowest; equal values share the mean of their places."""
    return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]


def sum_of_logs(columns):
    n = len(columns[0])
    return [sum(math.log(r / n) for r in ranks) for ranks in zip(*map(rank, columns), strict=True)]


def tau_b(a, b):
    """Count pairs."""
    agree = disagree = tied_in_a = tied_in_b = 0
    pairs = list(itertools.combinations(range(len(a)), 2))
    for i, j in pairs:
        sign = ((a[i] > a[j]) - (a[i] < a[j])) * ((b[i] > b[j]) - (b[i] < b[j]))
        agree += sign > 0
        disagree += sign < 0
        tied_in_a += a[i] == a[j]
        tied_in_b += b[i] == b[j]
    return (agree - disagree) / math.sqrt((len(pairs) - tied_in_a) * (len(pairs) - tied_in_b))


def pearson(a, b):
    mean_a, mean_b = fmean(a), fmean(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def orders(scores):
    """All orders in which no candidate stands before one of higher score."""
    places = range(len(scores))
    return [
        order
        for order in itertools.permutations(places)
        if all(scores[i] >= scores[j] for i, j in itertools.pairwise(order))
    ]


def ndcg(scores, truth, k):
    """Average over all orders of the tied."""

    def dcg(order):
        return sum((truth[i] - min(truth)) / math.log2(place + 2) for place, i in enumerate(order[:k]))

    return fmean(map(dcg, orders(scores))) / max(map(dcg, orders(truth)))


def regret(scores, truth, k):
    """Average over all orders of the tied."""
    return fmean(max(truth) - max(truth[i] for i in order[:k]) for order in orders(scores))
