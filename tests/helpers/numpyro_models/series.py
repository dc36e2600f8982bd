"""Series, processes in time and space, differential equations, networks of weights."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import constraints

from .case import case

FLOW = "test/contrib/test_control_flow.py: "
DRAW = np.random.default_rng(15)
Y = np.cumsum(DRAW.normal(0, 0.7, 12)) + DRAW.normal(0, 0.4, 12)
GRID = np.linspace(-1.0, 1.0, 12)


def positive(name, value):
    return numpyro.param(name, value, constraint=constraints.positive)


@case(FLOW + "test_scan", Y)
def noisy_autoregression(y):
    q, r = positive("q", 1.0), positive("r", 1.0)
    phi = numpyro.param("phi", 0.2)

    def step(carry, value):
        x, mu = carry
        x = numpyro.sample("x", dist.Normal(phi * x, q))
        mu = 0.3 * mu + x
        value = numpyro.sample("y", dist.Normal(mu, r), obs=value)
        numpyro.deterministic("twice", value * 2)
        return (x, mu), None

    x0 = numpyro.sample("x_0", dist.Normal(0.0, q))
    numpyro.sample("y_0", dist.Normal(x0, r), obs=y[0])
    scan(step, (x0, x0), y[1:])


@case(
    FLOW + "test_nested_scan_smoke",
    Y[:6].reshape(2, 3),
    verdict="a `scan` inside a `scan`",
    quick=True,
)
def a_scan_in_a_scan(y):
    scale = positive("scale", 1.0)

    def outer(x, row):
        x = numpyro.sample("x", dist.Normal(x, scale))

        def inner(z, value):
            z = numpyro.sample("z", dist.Normal(z, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=value)
            return z, z

        scan(inner, x, row)
        return x, None

    scan(outer, 0.0, y)


@case(
    FLOW + "test_scan_constrain_reparam_compatible",
    np.cumsum(np.exp(DRAW.normal(0, 0.4, 5))),
    e_step="nuts",
    verdict="estimate",
    draws=200_000,
)
def positive_steps(y):
    loc = numpyro.param("loc", 0.0)

    def step(level, value):
        jump = numpyro.sample("jump", dist.LogNormal(loc, 0.5))
        numpyro.sample("y", dist.Normal(level + jump, 0.3), obs=value)
        return level + jump, None

    scan(step, 0.0, y)


def vectors_in_time(y, last):
    scale = positive("scale", 1.0)

    def step(x, row):
        with numpyro.plate("N", 2, dim=-1):
            x = numpyro.sample("x", dist.Normal(0.5 * x, jnp.ones((2, 3))).to_event(1))
            numpyro.sample("y", dist.Normal(x, scale * jnp.ones((2, 3))).to_event(1), obs=row)
        return x, None

    scan(step, jnp.zeros((2, 3)), y[:last])


@case(FLOW + "test_scan_plate_mask", DRAW.normal(0, 1, (5, 2, 3)), 4, same_as=vectors_in_time)
def masked_vectors_in_time(y, last):
    scale = positive("scale", 1.0)

    def step(carry, row):
        x, t = carry
        with numpyro.plate("N", 2, dim=-1), handlers.mask(mask=t < last):
            x = numpyro.sample("x", dist.Normal(0.5 * x, jnp.ones((2, 3))).to_event(1))
            numpyro.sample("y", dist.Normal(x, scale * jnp.ones((2, 3))).to_event(1), obs=row)
        return (x, t + 1), None

    scan(step, (jnp.zeros((2, 3)), 0), y)


@case(FLOW + "test_scan_svi", np.cumsum(DRAW.normal(0, 1.5, (4, 3)), 0))
def walks_in_a_plate(y):
    step_sd, noise = positive("step_sd", 1.0), positive("noise", 0.5)

    def step(x, row):
        with numpyro.plate("data", 3):
            x = numpyro.sample("x", dist.Normal(x, step_sd))
            row = numpyro.sample("y", dist.Normal(x, noise), obs=row)
        return x, (x, row)

    with numpyro.plate("data", 3):
        x0 = numpyro.sample("x_0", dist.Normal(jnp.zeros(3), 5.0))
    scan(step, x0, y)
    numpyro.sample(
        "priors", dist.Gamma(3.0, 3.0).expand([2]).to_event(1), obs=jnp.stack([step_sd, noise])
    )


@case(FLOW + "test_scan_mvn", DRAW.normal(0, 1, (4, 3, 2)))
def vector_walks(y):
    scale = positive("scale", 1.0)

    def step(x, row):
        with numpyro.plate("series", 3):
            x = numpyro.sample("x", dist.MultivariateNormal(0.8 * x, scale_tril=scale * jnp.eye(2)))
            numpyro.sample("y", dist.MultivariateNormal(x, jnp.eye(2)), obs=row)
        return x, x

    scan(step, jnp.zeros((3, 2)), y)


@case(FLOW + "test_cond", np.array([4.6, 5.3]), e_step="nuts", verdict="estimate", draws=200_000)
def a_branch_of_the_program(y):
    loc = numpyro.param("loc", 1.0)

    def high(_):
        x = numpyro.sample("x", dist.Normal(loc + 4.0))
        numpyro.deterministic("z", x - 4.0)
        return x

    def low(_):
        x = numpyro.sample("x", dist.Normal(loc))
        numpyro.deterministic("z", x)
        return x

    numpyro.sample("prior", dist.Normal(loc, 1.0), obs=1.0)
    cluster = numpyro.sample("cluster", dist.Normal())
    x = cond(cluster > 0, high, low, None)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case(
    "examples/ar2.py: ar2_scan",
    jnp.asarray(Y),
    at_mode="alpha_1 alpha_2 const sigma",
    verdict="exact",
)
def autoregression_of_data(y):
    a = numpyro.sample("alpha_1", dist.Normal(0.0, 1.0))
    b = numpyro.sample("alpha_2", dist.Normal(0.0, 1.0))
    const = numpyro.sample("const", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.Gamma(2.0, 2.0))

    def step(carry, _):
        before, last = carry
        value = numpyro.sample("y", dist.Normal(const + a * last + b * before, sigma))
        return (last, value), value

    with handlers.condition(data={"y": y[2:]}):
        scan(step, (y[0], y[1]), jnp.arange(2, len(y)))


@case(
    "examples/var2.py: var2_scan",
    np.column_stack([Y, Y[::-1]]),
    at_mode="c phi sigma corr",
    verdict="exact",
)
def vector_autoregression(y):
    c = numpyro.sample("c", dist.Normal(0.0, 1.0).expand([2]))
    phi = numpyro.sample("phi", dist.Normal(0.0, 0.5).expand([2, 2]).to_event(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0).expand([2]).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(dimension=2, concentration=1.5))

    def step(last, value):
        law = dist.MultivariateNormal(c + phi @ last, scale_tril=sigma[:, None] * corr)
        value = numpyro.sample("y", law, obs=value)
        return value, value

    scan(step, y[0], y[1:])


@case(
    "examples/holt_winters.py: holt_winters",
    Y,
    at_mode="smoothing noise level trend season",
    verdict="exact",
)
def exponential_smoothing(y):
    smoothing = numpyro.sample("smoothing", dist.Beta(1.5, 1.5).expand([3]))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    trend = numpyro.sample("trend", dist.Normal(0.0, 1.0))
    with numpyro.plate("seasons", 4):
        season = numpyro.sample("season", dist.Normal(0.0, 1.0))

    def step(carry, value):
        level, trend, season = carry
        expected = level + trend
        numpyro.sample("y", dist.Normal(expected + season[0], noise), obs=value)
        after = smoothing[0] * (value - season[0]) + (1 - smoothing[0]) * expected
        slope = smoothing[1] * (after - level) + (1 - smoothing[1]) * trend
        new = smoothing[2] * (value - expected) + (1 - smoothing[2]) * season[0]
        return (after, slope, jnp.concatenate([season[1:], new[None]])), None

    scan(step, (level, trend, season), y)


@case(
    "examples/stochastic_volatility.py: model",
    DRAW.standard_t(6, 10),
    at_mode="sigma nu",
    e_step="nuts",
    verdict="estimate",
    draws=200_000,
)
def stochastic_volatility(y):
    sigma = numpyro.sample("sigma", dist.Gamma(6.0, 12.0))
    s = numpyro.sample("s", dist.GaussianRandomWalk(scale=sigma, num_steps=len(y)))
    nu = numpyro.sample("nu", dist.Gamma(6.0, 0.6))
    numpyro.sample("r", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=y)


@case("examples/stochastic_volatility.py, normal data", Y)
def a_random_walk_seen_with_noise(y):
    sigma, noise = positive("sigma", 0.5), positive("noise", 0.5)
    s = numpyro.sample("s", dist.GaussianRandomWalk(scale=sigma, num_steps=len(y)))
    numpyro.sample("y", dist.Normal(s, noise), obs=y)


@case(
    "test/infer/test_autoguide.py: test_subsample_guide",
    DRAW.integers(0, 2, (4, 6)),
    e_step="nuts",
    verdict="estimate",
    draws=200_000,
)
def drifting_coins(y):
    drift = positive("drift", 0.5)

    def step(z, row):
        with numpyro.plate("data", 6):
            z = numpyro.sample("state", dist.Normal(z, drift))
            numpyro.sample("y", dist.Bernoulli(logits=z + 0.3), obs=row)
        return z, None

    scan(step, jnp.zeros(6), y)
    numpyro.sample("prior", dist.Gamma(4.0, 6.0), obs=drift)


def squared(x, z, variance, length):
    return variance * jnp.exp(-0.5 * ((x[:, None] - z) / length) ** 2)


@case("examples/gp.py: model", GRID, Y, at_mode="var noise length", verdict="exact")
def gaussian_process(x, y):
    var = numpyro.sample("var", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    k = squared(x, x, var, length) + (noise + 1e-6) * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(loc=jnp.zeros(len(x)), covariance_matrix=k), obs=y)


@case("examples/gp.py, the function as a latent", GRID, Y, at_mode="var noise")
def gaussian_process_as_a_latent(x, y):
    var = numpyro.sample("var", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    k = squared(x, x, var, 0.4) + 1e-4 * jnp.eye(len(x))
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=k))
    numpyro.sample("y", dist.Normal(f, jnp.sqrt(noise)), obs=y)


@case(
    "examples/dais_demo.py: model",
    GRID,
    (Y > 0).astype(int),
    e_step="nuts",
    verdict="estimate",
    draws=200_000,
)
def cubed_process_of_coins(x, y):
    shift = numpyro.param("shift", 0.0)
    k = squared(x, x, 1.0, 0.4) + 1e-4 * jnp.eye(len(x))
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=k))
    numpyro.sample("y", dist.Bernoulli(logits=f**3 + shift), obs=y)
    numpyro.sample("prior", dist.Normal(shift, 1.0), obs=0.0)


@case("notebooks/source/circulant_gp.ipynb: model", Y)
def circulant_process(y):
    sigma = positive("sigma", 1.0)
    k = jnp.arange(7)
    spectrum = sigma**2 * 2.0 * jnp.exp(-2 * (jnp.pi * k * 1.5 / 12) ** 2) + 1e-2
    z = numpyro.sample("z", dist.CirculantNormal(jnp.zeros(12), covariance_rfft=spectrum))
    with numpyro.plate("n", 12):
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


@case("examples/hsgp.py: GP", GRID, Y, at_mode="alpha noise")
def process_by_basis_functions(x, y):
    alpha = numpyro.sample("alpha", dist.HalfNormal(1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(0.5))
    frequency = jnp.arange(1, 6) * jnp.pi / 3
    density = alpha * jnp.sqrt(jnp.sqrt(2 * jnp.pi) * 0.5) * jnp.exp(-0.25 * (0.5 * frequency) ** 2)
    basis = jnp.sin(frequency * (x[:, None] + 1.5)) / jnp.sqrt(1.5)
    with numpyro.plate("basis", 5):
        beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
    f = numpyro.deterministic("f", basis @ (density * beta))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


NEIGHBORS = np.array(
    [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1], [1, 0, 0, 1, 0]]
)


@case("test/test_distributions.py: CAR", NEIGHBORS, DRAW.normal(1, 1, (3, 5)))
def neighbors(adjacency, y):
    mean = numpyro.param("mean", 0.0)
    tau = positive("tau", 1.0)
    law = dist.CAR(
        loc=mean * jnp.ones(5), correlation=0.6, conditional_precision=tau, adj_matrix=adjacency
    )
    x = numpyro.sample("x", law)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)
    numpyro.sample("prior", dist.Gamma(3.0, 3.0), obs=tau)


@case(
    "examples/mortality.py: model",
    DRAW.binomial(200, 0.1, (3, 4)),
    at_mode="s1 s2",
    e_step="laplace",
    verdict="laplace",
    newton=12,
)
def deaths_by_age_and_year(deaths):
    s1 = numpyro.sample("s1", dist.Gamma(4.0, 8.0))
    s2 = numpyro.sample("s2", dist.Gamma(4.0, 8.0))
    level = numpyro.param("level", -2.0)
    with numpyro.plate("ages", 3, dim=-2):
        drift = numpyro.sample("drift", dist.Normal(0.0, s1))
    with numpyro.plate("years", 3, dim=-1):
        pi = numpyro.sample("pi", dist.Normal(0.0, s2))
    rate = level + jnp.cumsum(drift, -2) + jnp.pad(jnp.cumsum(pi, -1), (1, 0))
    numpyro.sample("deaths", dist.Binomial(200, logits=rate).to_event(2), obs=deaths)


def hares(z, t, theta):
    u, v = z
    return jnp.stack([(theta[0] - theta[1] * v) * u, (-theta[2] + theta[3] * u) * v])


TIMES = np.arange(8.0)
PREY = np.exp(
    DRAW.normal(
        np.log([[10, 5], [17, 4], [22, 8], [14, 14], [7, 12.0], [4, 8], [5, 4.5], [9, 3.5]]), 0.1
    )
)


@case("examples/ode.py: model", PREY, at_mode="start theta sigma")
def predators_and_prey(y):
    start = numpyro.sample("start", dist.LogNormal(jnp.log(10), 1.0).expand([2]))
    low = dist.TruncatedNormal(
        low=0.0, loc=jnp.array([1.0, 0.05, 1.0, 0.05]), scale=jnp.array([0.5, 0.05, 0.5, 0.05])
    )
    theta = numpyro.sample("theta", low)
    z = odeint(hares, start, TIMES, theta, rtol=1e-6, atol=1e-5, mxstep=1000)
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]))
    numpyro.sample("y", dist.LogNormal(jnp.log(z), sigma), obs=y)


DECAY = np.exp(-np.array([0.5, 0.7, 0.6, 0.8])[:, None] * np.arange(1, 4)) + DRAW.normal(
    0, 0.05, (4, 3)
)


@case(
    "examples/bnn.py: model",
    np.column_stack([np.ones(12), GRID]),
    Y[:, None] / 2,
    at_mode="precision",
    e_step="nuts",
    verdict="estimate",
    draws=200_000,
)
def network_of_weights(x, y):
    w1 = numpyro.sample("w1", dist.Normal(jnp.zeros((2, 2)), jnp.ones((2, 2))))
    w2 = numpyro.sample("w2", dist.Normal(jnp.zeros((2, 1)), jnp.ones((2, 1))))
    precision = numpyro.sample("precision", dist.Gamma(3.0, 1.0))
    with numpyro.plate("data", len(x)):
        law = dist.Normal(jnp.tanh(x @ w1) @ w2, 1.0 / jnp.sqrt(precision))
        numpyro.sample("y", law.to_event(1), obs=y)


@case(
    "examples/sparse_regression.py: model",
    DRAW.normal(0, 1, (12, 3)),
    Y,
    at_mode="sigma eta1 msq xisq lam",
    verdict="exact",
)
def sparse_pairs(x, y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(3.0))
    eta1 = numpyro.sample("eta1", dist.Gamma(3.0, 3.0))
    msq = numpyro.sample("msq", dist.InverseGamma(3.0, 3.0))
    xisq = numpyro.sample("xisq", dist.InverseGamma(3.0, 3.0))
    lam = numpyro.sample("lam", dist.Gamma(2.0, 2.0).expand([3]))
    eta2 = eta1**2 * jnp.sqrt(xisq) / msq
    kx = x * jnp.sqrt(msq) * lam / jnp.sqrt(msq + (eta1 * lam) ** 2)
    inner = kx @ kx.T
    k = 0.5 * eta2**2 * (1 + inner) ** 2 - 0.5 * eta2**2 * (kx**2 @ (kx**2).T)
    k = k + (eta1**2 - eta2**2) * inner + 1.0 - 0.5 * eta2**2 + sigma**2 * jnp.eye(12)
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(12), covariance_matrix=k), obs=y)
