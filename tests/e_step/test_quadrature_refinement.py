"""How many nodes are chosen, from log-likelihoods that are known."""

import numpy as np

from ppl_em.e_step.quadrature_refinement import AT_FIRST, WITNESS, Rule, choose, ladder

LINE = ladder(1, 30_000)


def allowed(value: float) -> float:
    return 1e-6


def settling(rule: Rule) -> float:
    return -5.0 + 10.0 ** (-0.5 * rule.size)


def test_few_nodes_where_they_settle():
    rule, change = choose(settling, allowed, LINE, None)
    assert not rule.sinh and change <= AT_FIRST * 1e-6
    before = LINE[LINE.index(rule) - 1]
    assert settling(before) - settling(rule) > AT_FIRST * 1e-6


def test_the_other_rule_where_something_is_missed():
    """Gauss-Hermite rules that agree with one another, but not with what reaches further."""
    rule, _ = choose(lambda r: settling(r) + (0.1 if r.sinh else 0.0), allowed, LINE, None)
    assert rule.sinh and rule.size < WITNESS.size


def test_a_rule_that_is_good_enough_stays():
    first = choose(settling, allowed, LINE, None)[0]
    assert choose(settling, allowed, LINE, first)[0] == first
    worse = choose(lambda r: settling(r) + 5.0 / r.size**2, allowed, LINE, first)
    assert worse[0] == LINE[-1] and worse[1] > 1e-6


def test_a_ladder_within_the_budget():
    assert max(rule.size for rule in ladder(1, 21)) == 21
    assert all(rule.size**3 <= 1000 for rule in ladder(3, 1000))
    assert not any(rule.sinh for rule in ladder(2, 1000))
    only = ladder(2, 1)
    assert len(only) == 1
    rule, change = choose(settling, allowed, only, None)
    assert rule == only[0] and np.isnan(change)
