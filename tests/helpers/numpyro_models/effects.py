"""What handlers do to a model: scope, mask, scale, condition, factor, plates, sub-sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints, transforms
from numpyro.infer.reparam import (
    CircularReparam,
    ExplicitReparam,
    HaarReparam,
    LocScaleReparam,
    ProjectedNormalReparam,
    TransformReparam,
)

from .case import case

HANDLERS = "test/test_handlers.py: "
SVI = "test/infer/test_svi.py: "
GUIDES = "test/infer/test_autoguide.py: "
REPARAM = "test/infer/test_reparam.py: "
DRAW = np.random.default_rng(16)
AROUND = "Site 'x': a `numpyro.handlers.scale` is around this continuous latent"
Y = DRAW.normal(0.7, 1.3, 8)
TABLE = DRAW.normal(0.5, 1.0, (5, 3)) + DRAW.normal(0, 1.0, (5, 1))


def positive(name, value):
    return numpyro.param(name, value, constraint=constraints.positive)


@case(HANDLERS + "test_mask", Y, np.arange(8) != 7)
def a_masked_row(y, seen):
    scale = positive("scale", 1.0)
    with numpyro.plate("N", 8):
        x = numpyro.sample("x", dist.Normal(0.0, scale))
        with handlers.mask(mask=seen):
            numpyro.sample("obs", dist.Normal(x, 1.0), obs=y)


def a_masked_row_and_a_number(y, seen):
    a_masked_row(y, seen)
    numpyro.factor("number", 7.0)


@case(HANDLERS + "test_mask, with a Delta", Y, np.arange(8) != 7, same_as=a_masked_row_and_a_number)
def a_delta_on_a_latent(y, seen):
    scale = positive("scale", 1.0)
    with numpyro.plate("N", 8):
        x = numpyro.sample("x", dist.Normal(0.0, scale))
        with handlers.mask(mask=seen):
            numpyro.sample("d", dist.Delta(x, log_density=1.0))
            numpyro.sample("obs", dist.Normal(x, 1.0), obs=y)


def seen_rows(y, seen):
    scale = positive("scale", 1.0)
    loc = numpyro.param("loc", 0.0)
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    numpyro.sample("y", dist.Normal(x, scale), obs=y[np.array([0, 2])])
    numpyro.sample("prior", dist.Gamma(3.0, 3.0), obs=scale)


@case(
    HANDLERS + "test_obs_mask_ok",
    np.array([1.0, 7.0, 2.5]),
    np.array([True, False, True]),
    same_as=seen_rows,
)
def an_outcome_seen_in_part(y, seen):
    scale = positive("scale", 1.0)
    loc = numpyro.param("loc", 0.0)
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(x, scale), obs=y, obs_mask=seen)
    numpyro.sample("prior", dist.Gamma(3.0, 3.0), obs=scale)


def seen_vectors(y, seen):
    loc = numpyro.param("loc", jnp.zeros(3))
    x = numpyro.sample("x", dist.MultivariateNormal(loc, jnp.eye(3)))
    numpyro.sample("y", dist.MultivariateNormal(x, jnp.eye(3)), obs=y[np.array([0, 1, 3])])


@case(
    HANDLERS + "test_obs_mask_multivariate_ok",
    DRAW.normal(1, 1, (4, 3)),
    np.array([True, True, False, True]),
    same_as=seen_vectors,
)
def vectors_seen_in_part(y, seen):
    loc = numpyro.param("loc", jnp.zeros(3))
    x = numpyro.sample("x", dist.MultivariateNormal(loc, jnp.eye(3)))
    with numpyro.plate("rows", 4):
        numpyro.sample("y", dist.MultivariateNormal(x, jnp.eye(3)), obs=y, obs_mask=seen)


@case(HANDLERS + "test_mask_inf", Y)
def a_masked_impossibility(y):
    loc = numpyro.param("loc", 0.0)
    with handlers.mask(mask=jnp.zeros(10, bool)):
        numpyro.factor("never", -jnp.inf)
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case(HANDLERS + "test_scale", Y)
def a_weighted_outcome(y):
    """Ten times each row, below a latent that is there once."""
    loc = numpyro.param("loc", 0.0)
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    with handlers.scale(scale=10.0):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case(HANDLERS + "test_scale, around all", Y, verdict=AROUND)
def a_weighted_model(y):
    loc = numpyro.param("loc", 0.0)
    with handlers.scale(scale=10.0):
        x = numpyro.sample("x", dist.Normal(loc, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case(HANDLERS + "model_nested_plates_1", TABLE)
def nested_plates(y):
    tau = positive("tau", 1.0)
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("outer", 5, dim=-2):
        x = numpyro.sample("x", dist.Normal(mu, tau))
        with numpyro.plate("inner", 3):
            numpyro.deterministic("z", x**2)
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case(HANDLERS + "model_dist_batch_shape", TABLE)
def plates_with_a_gap(y):
    """Plates at -1 and -3, and a law with a batch shape of its own between."""
    mu = numpyro.param("mu", 0.0)
    outer, inner = numpyro.plate("outer", 3), numpyro.plate("inner", 5, dim=-3)
    with outer:
        x = numpyro.sample("x", dist.Normal(mu * jnp.ones(3), 1.0))
    with inner:
        z = numpyro.sample("z", dist.Normal(0.0, jnp.ones((1, 1))))
    with outer, inner:
        numpyro.sample("y", dist.Normal(x + z, 0.7), obs=y[:, None, :])


def all_normals(y, size):
    loc = numpyro.param("loc", 0.0)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=y)


@case(
    HANDLERS + "test_subsample_gradient",
    np.array([-0.5, 2.0, 1.1, 0.3]),
    2,
    verdict="exact",
    same_as=all_normals,
)
def sub_sampled_normals(y, size):
    loc = numpyro.param("loc", 0.0)
    with numpyro.plate("data", len(y), subsample_size=size) as index:
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=y[index])


@case(HANDLERS + "test_scope", TABLE)
def names_with_a_scope(y):
    mu = numpyro.param("mu", 0.0)

    def effects(size):
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("groups", size, dim=-2):
            return numpyro.sample("b", dist.Normal(0.0, sd))

    b = handlers.scope(effects, prefix="re")(5)
    numpyro.sample("y", dist.Normal(mu + b, 1.0).to_event(2), obs=y)


@case(HANDLERS + "test_lift", Y, at_mode="loc")
def a_lifted_parameter(y):
    """A parameter that a handler turns into a sample site."""

    def inner():
        loc = numpyro.param("loc", 0.0)
        x = numpyro.sample("x", dist.Normal(loc, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    handlers.lift(inner, prior={"loc": dist.Normal(0.0, 1.0)})()


@case(HANDLERS + "test_condition", Y, quick=True)
def a_conditioned_model(y):
    loc = numpyro.param("loc", 0.0)

    def inner():
        d = numpyro.sample("d", dist.Delta(0.5))
        x = numpyro.sample("x", dist.Normal(loc, 1.0))
        with numpyro.plate("rows", 8):
            numpyro.sample("y", dist.Normal(x + d, 1.0))

    handlers.condition(inner, data={"y": y})()


@case(HANDLERS + "test_counterfactual_query")
def an_intervention():
    """`do` on the third of four in a line cuts it in two."""
    loc = numpyro.param("loc", 0.0)

    def inner():
        x = numpyro.sample("x", dist.Normal(loc, 1.0))
        y = numpyro.sample("y", dist.Normal(x, 1.0))
        z = numpyro.sample("z", dist.Normal(y, 1.0))
        numpyro.sample("w", dist.Normal(z + loc, 1.0), obs=1.0)

    handlers.do(inner, data={"z": 2.0})()


@case(HANDLERS + "test_collapse_beta_binomial", np.array([3, 7, 5]), rows=-1)
def collapsed_coins(y):
    a = positive("a", 1.0)
    with numpyro.plate("rows", 3):
        p = numpyro.sample("p", dist.Beta(a, 2.0))
        numpyro.sample("y", dist.Binomial(10, p), obs=y)


def a_level_seen_with_noise(params, y):
    n = len(y)
    law = dist.MultivariateNormal(params["loc"] * jnp.ones(n), jnp.eye(n) + jnp.ones((n, n)))
    return law.log_prob(jnp.asarray(y))


@case(HANDLERS + "test_prng_key", Y, formula=a_level_seen_with_noise)
def random_numbers_inside(y):
    loc = numpyro.param("loc", 0.0)
    noise = 0.0 * jax.random.normal(numpyro.prng_key(), (8,))
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    numpyro.sample("y", dist.Normal(x + noise, 1.0), obs=y)


@case(HANDLERS + "test_block", Y, verdict="nothing is observed, so there is no likelihood")
def blocked_data(y):
    loc = numpyro.param("loc", 0.0)
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    with handlers.block(), handlers.seed(rng_seed=0):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case(SVI + "test_renyi_local", 4.5)
def wide_normals(y):
    loc = numpyro.param("loc", 0.0)
    with numpyro.plate("N", 3):
        x = numpyro.sample("x", dist.Normal(loc, 1.0))
        numpyro.sample("obs", dist.Normal(x, 1.0), obs=y)


@case(SVI + "test_renyi_nonnested_plates", np.array([0.4, 1.2]), np.array([-0.3, 0.2, 0.8]))
def plates_that_do_not_nest(first, second):
    loc = numpyro.param("loc", 0.0)
    with numpyro.plate("firsts", 2):
        a = numpyro.sample("a", dist.Normal(loc, 1.0))
        numpyro.sample("x", dist.Normal(a, 1.0), obs=first)
    with numpyro.plate("seconds", 3):
        b = numpyro.sample("b", dist.Normal(loc, 2.0))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=second)


@case(SVI + "test_beta_bernoulli", np.array([1.0] * 8 + [0.0] * 2), at_mode="f")
def a_share_at_its_mode(y):
    f = numpyro.sample("f", dist.Beta(1.5, 1.5))
    with numpyro.plate("N", 10):
        numpyro.sample("y", dist.Bernoulli(f), obs=y)


@case(SVI + "test_mutable_state", Y, verdict="Site 'count': it is a mutable site", quick=True)
def a_state_that_changes(y):
    loc = numpyro.param("loc", 0.0)
    state = numpyro.primitives.mutable("count", {"value": jnp.zeros(())})
    state["value"] = state["value"] + 1
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case(SVI + "test_tracegraph_gaussian_chain")
def a_line_of_normals():
    loc = numpyro.param("loc", 0.3)
    x = numpyro.sample("x_0", dist.Normal(loc, 1.0))
    for k in range(1, 5):
        x = numpyro.sample(f"x_{k}", dist.Normal(x, 0.5))
    numpyro.sample("y", dist.Normal(x, 0.7), obs=1.4)


@case(SVI + "test_tracegraph_gamma_exponential", np.array([2.0, 0.5, 1.3]), rows=-1)
def rates_from_a_gamma(y):
    b = positive("b", 1.0)
    with numpyro.plate("rows", 3):
        rate = numpyro.sample("rate", dist.Gamma(2.0, b))
        numpyro.sample("y", dist.Exponential(rate), obs=y)


@case(GUIDES + "test_param", np.array([2.3, 1.9, 3.4]))
def composed_constraints(y):
    a = numpyro.param("a", 1.5, constraint=constraints.greater_than(1.0))
    b = positive("b", 1.0)
    numpyro.sample("x", dist.Normal(a, b), obs=y)


@case(
    GUIDES + "test_improper",
    Y,
    at_mode="sigma",
    verdict="Site 'first': its prior is improper, and the data see it only together with",
)
def two_flat_means(y):
    """Only the sum of two flat latents is seen: their posterior is no law."""
    first = numpyro.sample("first", dist.ImproperUniform(constraints.real, (), ()))
    second = numpyro.sample("second", dist.ImproperUniform(constraints.real, (), ()))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    mu = numpyro.deterministic("mu", first + second)
    with numpyro.plate("N", len(y)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@case(GUIDES + "test_autoguide_deterministic", Y)
def residuals_written_down(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sigma = positive("sigma", 1)
    with numpyro.plate("N", 8):
        y = numpyro.sample("y", dist.Normal(mu, sigma).expand((8,)), obs=y)
    numpyro.deterministic("z", (y - mu) / sigma)


@case(
    GUIDES + "test_sphere_helpful_error",
    verdict="Site 'y': it is a latent ProjectedNormal, on .*ProjectedNormalReparam",
    quick=True,
)
def a_direction():
    loc = numpyro.param("loc", jnp.zeros(2))
    x = numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1))
    y = numpyro.sample("y", dist.ProjectedNormal(x))
    numpyro.sample("obs", dist.Normal(y, 1.0).to_event(1), obs=jnp.array([1.0, 0.0]))


@case(
    GUIDES + "test_forward_mode_differentiation",
    verdict="its log-density has no gradient: Reverse-mode .* lax.while_loop",
)
def a_loop_of_unknown_length():
    loc = numpyro.param("loc", 0.0)
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    y = jax.lax.while_loop(lambda x: x < 10, lambda x: x + 1, x)
    numpyro.sample("obs", dist.Normal(y, 1.0), obs=1.0)


@case(GUIDES + "test_module", DRAW.normal(0, 1, (8, 2)), Y, at_mode="sigma")
def a_layer_as_a_module(x, y):
    """A layer in the form of `jax.example_libraries.stax`."""

    def init(key, shape):
        return shape, {"w": 0.1 * jax.random.normal(key, (2, 1)), "b": jnp.zeros(1)}

    layer = numpyro.module("nn", (init, lambda p, x: x @ p["w"] + p["b"]), (2,))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("N", 8):
        numpyro.sample("y", dist.Normal(layer(x).squeeze(-1), sigma), obs=y)


@case(GUIDES + "test_autosemidais", DRAW.normal(0, 1, (10, 2)), DRAW.normal(0, 1, 10), rows=-1)
def precisions_of_rows(x, y):
    theta = numpyro.param("theta", jnp.zeros(2))
    with numpyro.plate("N", 10):
        tau = numpyro.sample("tau", dist.Gamma(5.0, 5.0))
        numpyro.sample("y", dist.Normal(x @ theta, 0.5 / jnp.sqrt(tau)), obs=y)


@case(REPARAM + "test_syntax", Y, at_mode="scale")
def noncentered_by_config(y):
    scale = numpyro.sample("scale", dist.Gamma(3.0, 3.0))
    config = {"x": LocScaleReparam(0.0), "z": LocScaleReparam(0.3)}
    with handlers.reparam(config=config):
        x = numpyro.sample("x", dist.Normal(0.5, scale))
        z = numpyro.sample("z", dist.Normal(x, scale))
    numpyro.sample("y", dist.Normal(z, scale), obs=y)


@case(REPARAM + "test_neals_funnel_smoke, a dimension seen", Y, at_mode="scale")
def neals_funnel(y):
    scale = numpyro.sample("scale", dist.Normal(0.0, 1.0))
    with numpyro.plate("D", 8), handlers.reparam(config={"z": TransformReparam()}):
        law = dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), transforms.AffineTransform(0.0, jnp.exp(scale / 2))
        )
        z = numpyro.sample("z", law)
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


@case(
    REPARAM + "test_explicit_reparam",
    np.array([0.8, 1.4, 2.2, 0.6]),
    rows=-1,
    e_step="quadrature",
    verdict="quadrature",
)
def rates_by_softplus(y):
    b = positive("b", 1.0)
    with (
        numpyro.plate("rows", 4),
        handlers.reparam(config={"x": ExplicitReparam(transforms.SoftplusTransform().inv)}),
    ):
        x = numpyro.sample("x", dist.Gamma(4.0, b))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


@case(REPARAM + "test_haar_reparam (test_time_reparam_nuts_smoke)", Y)
def haar_coefficients(y):
    scale = positive("scale", 1.0)
    with handlers.reparam(config={"x": HaarReparam()}):
        x = numpyro.sample("x", dist.Normal(0.0, scale).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


CIRCLE = jnp.linspace(-jnp.pi, jnp.pi, 721)[1:]


def on_circle(logs):
    return jnp.sum(jax.scipy.special.logsumexp(logs, axis=0) + jnp.log(2 * jnp.pi / 720))


def angles_on_a_grid(params, y):
    at = CIRCLE[:, None]
    law = dist.VonMises(params["loc"], 3.0)
    return on_circle(law.log_prob(at) + dist.VonMises(at, 5.0).log_prob(y))


def directions_on_a_grid(params, y):
    at = jnp.stack([jnp.cos(CIRCLE), jnp.sin(CIRCLE)], axis=-1)
    law = dist.ProjectedNormal(params["loc"]).log_prob(at)[:, None]
    value = on_circle(law + dist.Normal(at[:, None], 0.5).log_prob(y).sum(-1))
    return value + dist.Normal(params["loc"], 1.0).log_prob(0.0).sum()


@case(
    REPARAM + "test_circular",
    np.array([0.2, 0.5, -0.3]),
    e_step="nuts",
    verdict="estimate",
    formula=angles_on_a_grid,
)
def latent_angles(y):
    loc = numpyro.param("loc", 0.1)
    with numpyro.plate("rows", 3), handlers.reparam(config={"x": CircularReparam()}):
        x = numpyro.sample("x", dist.VonMises(loc, 3.0))
        numpyro.sample("y", dist.VonMises(x, 5.0), obs=y)


@case(
    REPARAM + "test_projected_normal",
    np.array([[0.9, 0.2], [0.7, 0.6]]),
    e_step="nuts",
    verdict="estimate",
    formula=directions_on_a_grid,
)
def latent_directions(y):
    loc = numpyro.param("loc", jnp.array([1.0, 0.5]))
    with numpyro.plate("rows", 2), handlers.reparam(config={"x": ProjectedNormalReparam()}):
        x = numpyro.sample("x", dist.ProjectedNormal(loc))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)
    numpyro.sample("prior", dist.Normal(loc, 1.0).to_event(1), obs=jnp.zeros(2))


@case(
    "test/infer/test_mcmc.py: test_trivial_dirichlet",
    verdict="Site 'x': a single value is possible for it, so it is no latent",
    quick=True,
)
def a_simplex_of_one():
    """A latent with a single possible value."""
    loc = numpyro.param("loc", 0.0)
    x = numpyro.sample("x", dist.Dirichlet(jnp.ones(1)))
    numpyro.sample("y", dist.Normal(x[0] + loc, 1.0), obs=2.0)


@case("test/infer/test_mcmc.py: test_loose_warning_for_missing_plate", DRAW.normal(1, 1, (5, 10)))
def a_plate_too_few(y):
    loc = numpyro.param("loc", 0.0)
    x = numpyro.sample("x", dist.Normal(loc, 1.0))
    with numpyro.plate("N", 10):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case("test/infer/test_mcmc.py: test_structured_mass")
def a_joint_law_of_latents():
    """A law whose observed value is made of latents."""
    scale = positive("scale", 1.0)
    w = numpyro.sample("w", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    cov = scale * jnp.array([[1.5, 0.5], [0.5, 1.5]])
    numpyro.sample("joint", dist.MultivariateNormal(jnp.zeros(2), cov), obs=w)
    numpyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=jnp.array([1.9, -2.3]))


@case("test/infer/test_mcmc.py: test_empty_model", verdict="nothing is observed", quick=True)
def nothing_at_all():
    pass


@case(
    "test/infer/test_mcmc.py: test_vectorized_sampling_zero_sized",
    np.array([15.0, 10.0]),
)
def an_outcome_without_rows(sigma):
    mu = numpyro.param("mu", 0.3)
    with numpyro.plate("J", 2):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
    numpyro.sample("none", dist.Normal(theta[0], 1.0).expand([0]), obs=jnp.zeros(0))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=jnp.array([1.0, 2.0]))


@case("examples/minipyro.py: model", Y, at_mode="loc")
def smallest_model(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    numpyro.sample("obs", dist.Normal(loc, 1.0), obs=y)


@case("examples/funnel.py: model, seen", np.array([0.3, -1.2, 0.8]), at_mode="y")
def funnel(seen):
    y = numpyro.sample("y", dist.Normal(0.0, 3.0))
    x = numpyro.sample("x", dist.Normal(jnp.zeros(3), jnp.exp(y / 2)))
    numpyro.sample("obs", dist.Normal(x, 1.0), obs=seen)


class DualMoon(dist.Distribution):
    support = constraints.real_vector

    def __init__(self):
        super().__init__(event_shape=(2,))

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, sample_shape + self.event_shape)

    def log_prob(self, x):
        radial = 0.5 * ((jnp.linalg.norm(x, axis=-1) - 2) / 0.4) ** 2
        parts = -0.5 * ((x[..., :1] + jnp.array([-2.0, 2.0])) / 0.6) ** 2
        return jax.scipy.special.logsumexp(parts, axis=-1) - radial


def moons_on_a_grid(params):
    line = jnp.linspace(-5.0, 5.0, 801)
    x = jnp.stack(jnp.meshgrid(line, line), axis=-1)
    seen = dist.Normal(x + params["shift"], 1.0).log_prob(jnp.array([1.5, 0.5])).sum(-1)
    each = jax.scipy.special.logsumexp(DualMoon().log_prob(x) + seen)
    return each + 2 * jnp.log(line[1] - line[0])


@case(
    "examples/neutra.py: DualMoonDistribution",
    e_step="nuts",
    verdict="estimate",
    formula=moons_on_a_grid,
)
def two_moons():
    """A latent of a law of one's own, not normalised, seen with noise."""
    shift = numpyro.param("shift", 0.0)
    x = numpyro.sample("x", DualMoon())
    numpyro.sample("y", dist.Normal(x + shift, 1.0).to_event(1), obs=jnp.array([1.5, 0.5]))
