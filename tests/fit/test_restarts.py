"""Several starts: distinct optima, their shares, and degenerate ones that are not returned."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.special import logsumexp

import ppl_em.em
from ppl_em import EM, ModelError, Status, Stopping
from ppl_em.cli import commands as cli
from ppl_em.e_step import NUTS
from ppl_em.fit import drawn_starts
from ppl_em.m_step import Newton
from ppl_em.problem import build_problem
from ppl_em.structure import exchangeable, nearest, permuted

KEY = jax.random.key(SEED)


def simulated(size=40, seed=5):
    """Rows of three well separated components, two of them equal."""
    draw = np.random.default_rng(seed)
    z = draw.choice(3, size, p=[0.3, 0.5, 0.2])
    y = np.array([-4.0, 0.0, 3.0])[z] + np.array([0.5, 1.0, 0.7])[z] * draw.normal(size=size)
    y[1] = y[0]
    return y


Y = simulated()


def mixture(y, count=3):
    """Normal components, each with its own scale: the likelihood has no bound."""
    probs = numpyro.param("probs", jnp.full(count, 1 / count), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.mean(y) + jnp.std(y) * jnp.linspace(-1.0, 1.0, count))
    sd = numpyro.param("sd", jnp.full(count, 1.0) * jnp.std(y), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(probs))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)


@np.errstate(all="ignore")
def by_hand(y, params, steps=4000):
    """Closed-form EM for the mixture; log-likelihood and parameters, NaN where a scale vanishes."""
    probs, mu, sd = (np.array(params[name], float) for name in ("probs", "mu", "sd"))
    before = -np.inf
    for _ in range(steps):
        z = (y[:, None] - mu) / sd
        joint = np.log(probs) - 0.5 * (z**2 + np.log(2 * np.pi)) - np.log(sd)
        value = logsumexp(joint, axis=1)
        weights = np.exp(joint - value[:, None])
        rows = weights.sum(axis=0)
        probs, some = np.maximum(rows / len(y), 1e-300), rows > 1e-12
        mu = np.where(some, weights.T @ y / np.maximum(rows, 1e-300), mu)
        squares = np.sum(weights * (y[:, None] - mu) ** 2, axis=0)
        sd = np.where(some, np.sqrt(squares / np.maximum(rows, 1e-300)), sd)
        if np.any((sd < 1e-10) & (rows > 0.5)):
            return np.nan, None
        if abs(value.sum() - before) < 1e-12:
            break
        before = value.sum()
    return value.sum(), {"probs": probs, "mu": mu, "sd": sd}


ON_A_PAIR = {"mu": np.array([Y[0], -3.0, 3.0]), "sd": np.array([1e-3, 1.0, 1.0])}


def fit(model, *args, e_step="auto", init_params=None, **options):
    em = EM(model, e_step, **options)
    return em.run(KEY, *args, init_params=init_params, progress_bar=False)


@pytest.fixture(scope="module")
def restarted():
    """Thirty starts of EM alone; the second is on the pair of equal rows."""
    return fit(mixture, Y, num_restarts=30, finish=None, init_params=[{}, ON_A_PAIR])


def test_every_start_agrees_with_em_by_hand(restarted):
    """The same starts, closed-form M-steps, no library: the same optimum from every one."""
    record = restarted.restarts
    for i in range(30):
        start = {name: record.histories[i][name][0] for name in restarted.params}
        value = by_hand(Y, start)[0]
        if record.status[i] == "CONVERGED":
            assert value == pytest.approx(record.log_likelihood[i], abs=1e-6)
        elif record.status[i] == "BOUNDARY":  # a component without weight, where EM only creeps
            assert value <= record.log_likelihood[i] + 1e-6
        else:
            assert record.status[i] == "MAX_STEPS" or np.isnan(value)
    assert record.status.count("CONVERGED") > 20


def test_table_of_optima(restarted):
    record = restarted.restarts
    values = np.array([one.objective for one in record.optima])
    assert 2 <= len(values) < 10
    assert np.all(np.diff(values) < -0.01)
    for k, one in enumerate(record.optima):
        assert set(one.starts) == set(np.flatnonzero(record.cluster == k))
        assert one.share == len(one.starts) / 30
        np.testing.assert_allclose(record.objective[list(one.starts)], one.objective, atol=1e-6)
        assert one.below_best == pytest.approx(values[0] - one.objective)
        again = by_hand(Y, one.params)
        assert again[0] == pytest.approx(one.log_likelihood, abs=1e-6)
        for name, value in one.params.items():
            np.testing.assert_allclose(again[1][name], value, atol=1e-4)
    assert restarted.restarts.optima[0].starts[0] >= 0
    assert restarted.log_likelihood.value == np.nanmax(
        np.where(record.degenerate, np.nan, record.objective)
    )
    assert "30 starts" in str(restarted) and "exchangeable: 3 components" in str(restarted)
    assert restarted.seconds["total"] >= record.seconds.sum()


def test_components_of_optima_are_aligned(restarted):
    """No relabelling of an optimum is nearer to the best one."""
    best, *others = (one.params for one in restarted.restarts.optima)
    for one in others:
        away = [
            sum(np.sum((one[k][list(p)] - v) ** 2) / np.var(v) for k, v in best.items())
            for p in ORDERS
        ]
        assert np.argmin(away) == 0


ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def test_degenerate_starts_are_not_returned(restarted):
    """On the pair of equal rows the scale goes to 0, and the likelihood beyond that of all else."""
    record = restarted.restarts
    assert record.degenerate[1] and record.cluster[1] == -1
    assert record.log_likelihood[1] > restarted.log_likelihood.value + 5
    assert "sd[0]" in record.message[1] and "2 nats for each factor e" in record.message[1]
    assert not record.degenerate[record.best] and restarted.degeneracy == ""
    assert "degenerate" in str(record)


def test_all_starts_degenerate():
    result = fit(
        mixture, Y, init_params=[ON_A_PAIR, {**ON_A_PAIR, "probs": np.array([0.2, 0.4, 0.4])}]
    )
    assert result.status is Status.DEGENERATE and not result.converged
    assert result.restarts.degenerate.all() and result.restarts.optima == ()
    assert "sd[0]" in result.degeneracy
    with pytest.warns(UserWarning, match="Standard errors are not available"):
        assert result.degeneracy in str(result)


def test_one_start_is_judged_too():
    result = fit(mixture, Y, init_params=ON_A_PAIR)
    assert result.status is Status.DEGENERATE and result.restarts is None


@pytest.mark.long
def test_boundary_is_not_degenerate():
    """A variance at zero, where the likelihood is finite; and a probability that vanishes."""

    def effects(y):
        mu = numpyro.param("mu", 0.0)
        tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
        with numpyro.plate("groups", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * z, 1.0), obs=y)

    result = fit(effects, 0.3 * np.random.default_rng(1).normal(size=20), num_restarts=3)
    assert result.degeneracy == "" and not result.restarts.degenerate.any()
    assert result.params["tau"] < 1e-2


def test_traces_and_files(restarted, tmp_path):
    record = restarted.restarts
    trace = restarted.to_datatree()["em_trace"]
    assert trace.sizes["restart"] == 30
    assert trace.sizes["iteration"] == max(record.num_steps)
    for i in (0, 7):
        count = record.num_steps[i]
        np.testing.assert_array_equal(trace["sd"][i, :count], record.histories[i]["sd"])
        assert np.all(np.isnan(trace["sd"][i, count:]))
        assert np.all(trace["phase"][i, count:] == "")
    restarted.save(tmp_path / "fit.nc")
    again = ppl_em.load(tmp_path / "fit.nc")
    for name, values in restarted.history.items():
        np.testing.assert_array_equal(again.history[name], values)
    assert str(again.restarts) == str(record)
    np.testing.assert_array_equal(again.restarts.cluster, record.cluster)
    for one, other in zip(again.restarts.optima, record.optima, strict=True):
        assert one.starts == other.starts
        np.testing.assert_allclose(one.params["sd"], other.params["sd"])
    np.testing.assert_array_equal(again.restarts.histories[7]["mu"], record.histories[7]["mu"])


def interrupt_at(monkeypatch, count, error):
    original, calls = ppl_em.em.run_loop, []

    def run_loop(*args):
        calls.append(None)
        if len(calls) == count:
            raise error
        return original(*args)

    monkeypatch.setattr(ppl_em.em, "run_loop", run_loop)


def test_interruption_returns_the_best_so_far(monkeypatch):
    interrupt_at(monkeypatch, 3, KeyboardInterrupt)
    result = fit(mixture, Y, num_restarts=5)
    assert result.status is Status.INTERRUPTED and len(result.restarts.status) == 2
    assert result.log_likelihood.value == max(result.restarts.log_likelihood)


def test_failures_are_recorded(monkeypatch):
    interrupt_at(monkeypatch, 2, ModelError("EM step 3 lowered the objective by 1."))
    result = fit(mixture, Y, num_restarts=3)
    assert result.converged
    assert result.restarts.status[1] == "FAILED"
    assert "lowered" in result.restarts.message[1] and "1 failed: EM step 3" in str(result)
    assert np.isnan(result.restarts.objective[1]) and result.restarts.cluster[1] == -1


def test_first_error_is_raised_if_all_fail(monkeypatch):
    def run_loop(*args):
        raise ModelError("nothing works")

    monkeypatch.setattr(ppl_em.em, "run_loop", run_loop)
    with pytest.raises(ModelError, match="nothing works"):
        fit(mixture, Y, num_restarts=2)


def test_seconds_limit_all_starts_together(caplog):
    result = fit(mixture, Y, num_restarts=50, stopping=Stopping(max_seconds=0.3))
    assert len(result.restarts.status) < 50
    assert "starts were run" in caplog.text


def test_starts_are_spread_around_the_initial_values():
    problem, params = build_problem(KEY, mixture, (Y,), {})
    others = drawn_starts(KEY, problem, params, 400, NUTS(), Newton())
    for name in ("mu", "sd"):
        value = np.array([start[name] for start in others])
        if name == "sd":
            value = np.log(value / np.std(Y))
        expected = np.std(params["mu"]) if name == "mu" else 1.0
        center = params["mu"] if name == "mu" else 0.0
        error = expected / np.sqrt(len(others))
        assert np.all(np.abs(value.mean(axis=0) - center) < 4 * error)
        assert np.all(np.abs(value.std(axis=0) - expected) < 4 * error)


def test_maximised_sites_start_from_their_priors():
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(5.0, 3.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    problem, params = build_problem(KEY, model, (Y,), {}, map_sites=["mean"])
    drawn = drawn_starts(KEY, problem, params, 399, NUTS(), Newton())
    starts = [float(start["mean"]) for start in drawn]
    assert abs(np.mean(starts) - 5) < 4 * 3 / 20 and abs(np.std(starts) - 3) < 4 * 3 / 28


@pytest.mark.parametrize(
    ("init_params", "text"),
    [
        ([{}, {"sdd": 1.0}], "Site 'sdd'"),
        ([{}, {"sd": np.ones(2)}], r"Site 'sd'.*shape \(2,\)"),
        ([{}, {"sd": np.array([1.0, 1.0, -1.0])}], "Site 'sd'.*outside"),
        ([{}, 3], "Option `init_params`: found a int"),
        ([], "Option `init_params`: found an empty list"),
    ],
)
def test_wrong_starts(init_params, text):
    with pytest.raises(ModelError, match=text):
        fit(mixture, Y, init_params=init_params)


@pytest.mark.parametrize("count", [0, 2.5])
def test_wrong_number(count):
    with pytest.raises(ModelError, match="num_restarts"):
        EM(mixture, num_restarts=count)


def hidden_chain(y):
    move = numpyro.param("move", jnp.full((3, 3), 1 / 3), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 0.0, 1.0]))
    start = numpyro.param("start", jnp.full(3, 1 / 3), constraint=constraints.simplex)

    def step(before, value):
        probs = start if before is None else move[before]
        state = numpyro.sample("state", dist.Categorical(probs))
        numpyro.sample("y", dist.Normal(mu[state], 1.0), obs=value)
        return state, None

    first = numpyro.sample("first", dist.Categorical(start))
    numpyro.sample("y0", dist.Normal(mu[first], 1.0), obs=y[0])
    scan(step, first, y[1:])


def test_what_is_exchangeable():
    """Rows and columns of a transition matrix go together; regression coefficients do not."""
    problem, params = build_problem(KEY, hidden_chain, (Y[:6],), {})
    (group,) = exchangeable(problem, params)
    assert group.axes == ((0, 0), (0, 1), (1, 0), (2, 0))  # leaves: move, mu, start

    def regression(x, y):
        b = numpyro.param("b", jnp.zeros(3))
        c = numpyro.param("c", jnp.ones(2))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(x @ b + c[0] ** 2 + c[1] ** 2, 1.0), obs=y)

    x = np.random.default_rng(2).normal(size=(len(Y), 3))
    problem, params = build_problem(KEY, regression, (x, Y), {})
    (group,) = exchangeable(problem, params)
    assert group == (2, ((1, 0),))


@pytest.mark.parametrize("count", [4, 8])
def test_alignment_undoes_a_permutation(count):
    """By all permutations, and by the assignment for larger numbers."""
    problem, params = build_problem(KEY, mixture, (Y, count), {})
    groups = exchangeable(problem, params)
    draw = np.random.default_rng(0)
    order = draw.permutation(count)
    shuffled = permuted(params, groups, [order])
    np.testing.assert_array_equal(shuffled["mu"], np.asarray(params["mu"])[order])
    noisy = {k: v + 1e-3 * draw.normal(size=count) for k, v in shuffled.items()}
    back = permuted(noisy, groups, nearest(noisy, params, groups))
    for name, value in params.items():
        np.testing.assert_allclose(back[name], value, atol=0.01)


def two_modes(y):
    """The sign of `a` does not matter: two optima with one likelihood."""
    a = numpyro.param("a", 0.7)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a * z, 1.0), obs=y)


def test_equal_likelihoods_at_other_parameters_are_distinct_optima():
    result = fit(two_modes, Y, num_restarts=8)
    one, other = result.restarts.optima
    assert one.objective == pytest.approx(other.objective, abs=1e-8)
    assert one.params["a"] == pytest.approx(-float(other.params["a"]), rel=1e-5)
    assert abs(one.params["a"]) == pytest.approx(np.sqrt(np.mean(Y**2) - 1), rel=1e-5)
    assert one.share + other.share == 1


def test_parameters_that_do_not_matter_make_no_optima():
    """A component without weight may be anywhere: one optimum."""
    starts = [{"probs": np.array([1 - 1e-9, 1e-9]), "mu": np.array([0.0, m])} for m in (40, 60.0)]
    result = fit(mixture, Y, 2, init_params=[*starts])
    first, other = (h["mu"][-1][1] for h in result.restarts.histories)
    assert abs(first - other) > 1
    (one,) = result.restarts.optima
    assert one.share == 1 and one.note == "value 1 of 'z' has no weight"
    assert one.log_likelihood == pytest.approx(dist.Normal(Y.mean(), Y.std()).log_prob(Y).sum())


@pytest.mark.long
def test_monte_carlo_optima_agree_within_their_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fit(two_modes, Y, e_step="nuts", num_restarts=4)
    record = result.restarts
    assert len(record.optima) <= 2
    for one in record.optima:
        assert abs(one.params["a"]) == pytest.approx(np.sqrt(np.mean(Y**2) - 1), rel=0.05)


MODEL = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist
def model(y):
    a = numpyro.param("a", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(a[z], 1.0), obs=y)
def load():
    return {"y": jnp.array([-2.0, -1.5, -2.5, 2.0, 2.5, 1.0])}
"""


def test_from_the_command_line(tmp_path, capsys):
    (tmp_path / "halves.py").write_text(MODEL)
    command = ["fit", str(tmp_path / "halves.py"), "--num-restarts", "3", "--no-progress"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["restarts"]["starts"]["status"]) == 3
    (one,) = found["restarts"]["optima"]
    assert one["share"] == 1 and len(one["params"]["a"]) == 2
    assert one["log_likelihood"] == pytest.approx(found["log_likelihood"]["value"])
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "3 starts, 1 distinct optima" in out and "exchangeable: 2 components of a" in out
