"""Mixtures, annotators, zero inflation, missing values: one or a few discrete latents a row."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.reparam import LocScaleReparam
from numpyro.ops.indexing import Vindex

from .case import case

ANNOTATION = "examples/annotation.py: "
MIXTURES = "test/test_distributions_mixture.py: "
PARALLEL = {"enumerate": "parallel"}
DRAW = np.random.default_rng(13)
Y = DRAW.normal(np.array([-1.5, -1.0, -1.2, 2.0, 2.2, 1.7, 1.0, -2.0]), 0.5)
COUNTS = np.array([0, 0, 3, 1, 0, 5, 2, 0, 4, 1, 0, 0, 2, 3])
X = np.column_stack([np.ones(14), DRAW.normal(0, 1, 14)])
LABELS = np.array(
    [[0, 0, 1, 0], [2, 2, 2, 1], [1, 1, 0, 1], [0, 0, 0, 0], [2, 1, 2, 2], [1, 1, 1, 0]]
)
WHO = np.array([0, 0, 1, 2])


@case(
    "examples/toy_mixture_model_discrete_enumeration.py: model",
    np.array([0, 1, 1]),
    np.array([1, 1, 0]),
    np.array([0, 1, 1]),
)
def a_network_of_coins(x1, x2, x3):
    """Two causes, each of two of three effects."""
    p = numpyro.param("p", jnp.array([0.3, 0.6]), constraint=constraints.unit_interval)
    numpyro.sample("prior", dist.Beta(2.0, 2.0).expand([2]).to_event(1), obs=p)
    with numpyro.plate("rows", len(x1)):
        a = numpyro.sample("a", dist.Bernoulli(p[0]), infer=PARALLEL)
        b = numpyro.sample("b", dist.Bernoulli(0.3 + 0.4 * a), infer=PARALLEL)
        numpyro.sample("x1", dist.Bernoulli(0.2 + 0.5 * a), obs=x1)
        numpyro.sample("x2", dist.Bernoulli(0.2 + 0.3 * a + 0.4 * b), obs=x2)
        numpyro.sample("x3", dist.Bernoulli(0.9 - 0.7 * b * p[1]), obs=x3)


@case(
    "test/contrib/test_funsor.py: test_gaussian_mixture_model",
    Y,
    at_mode="weights means",
)
def mixture_with_priors(y):
    weights = numpyro.sample("weights", dist.Dirichlet(2 * jnp.ones(2)))
    with numpyro.plate("clusters", 2):
        means = numpyro.sample("means", dist.Normal(jnp.arange(2.0), 1.0))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(means[z], 1.0), obs=y)


@case(
    "test/contrib/test_funsor.py: test_missing_plate",
    Y,
    at_mode="weights means",
    verdict="Site 'means': its batch shape is .2,. and axis -1 is in no plate",
    quick=True,
)
def mixture_whose_means_lack_a_plate(y):
    weights = numpyro.sample("weights", dist.Dirichlet(2 * jnp.ones(2)))
    means = numpyro.sample("means", dist.Normal(jnp.arange(2.0), 1.0))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(means[z], 1.0), obs=y)


@case(
    "test/contrib/test_funsor.py: test_bernoulli_latent_model",
    np.array([2.1, 0.3, -0.4, 2.6, 1.1]),
    at_mode="p",
)
def a_coin_behind_a_coin(y):
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Bernoulli(p))
        b = numpyro.sample("b", dist.Bernoulli(0.65 * a + 0.1))
        numpyro.sample("y", dist.Normal(2.0 * b, 1.0), obs=y)


@case(MIXTURES + "test_mixture_same_family_batch_shape", Y, quick=True)
def mixture_as_one_law(y):
    """No discrete site: the law sums by itself."""
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    locs = numpyro.param("locs", jnp.array([-1.0, 1.0]))
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    law = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scale))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", law, obs=y)


@case(MIXTURES + "test_mixture_with_different_support", np.abs(Y) + 0.1)
def mixture_of_families(y):
    weight = numpyro.param("weight", 0.4, constraint=constraints.unit_interval)
    shape = numpyro.param("shape", 2.0, constraint=constraints.positive)
    weights = dist.Categorical(jnp.stack([weight, 1 - weight]))
    parts = [dist.LogNormal(0.0, 0.5), dist.Gamma(shape, 1.0)]
    law = dist.MixtureGeneral(weights, parts)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", law, obs=y)


@case("examples/zero_inflated_poisson.py: model", X, COUNTS, at_mode="b1 b2")
def zero_inflated_counts(x, y):
    b1 = numpyro.sample("b1", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    gate, rate = jax.scipy.special.expit(x @ b1), jnp.exp(x @ b2)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.ZeroInflatedPoisson(gate=gate, rate=rate), obs=y)


@case("test/test_distributions.py: ZeroInflatedNegativeBinomial2", COUNTS, start={"mean": 1.5})
def zero_inflated_overdispersed_counts(y):
    gate = numpyro.param("gate", 0.2, constraint=constraints.unit_interval)
    mean = numpyro.param("mean", 1.0, constraint=constraints.positive)
    law = dist.ZeroInflatedNegativeBinomial2(mean, 3.0, gate=gate)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", law, obs=y)


@case("examples/zero_inflated_poisson.py, the gate as a site", np.array([0, 0, 3, 1, 0, 5]))
def zero_inflation_by_a_latent(y):
    """A rate of exactly 0 where the gate is closed."""
    gate = numpyro.param("gate", 0.4, constraint=constraints.unit_interval)
    rate = numpyro.param("rate", 2.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(gate), infer=PARALLEL)
        numpyro.sample("y", dist.Poisson(rate * (1 - z) + 1e-300 * z), obs=y)


@case(ANNOTATION + "multinomial", LABELS, at_mode="zeta pi")
def items_and_labels(labels):
    with numpyro.plate("class", 3):
        zeta = numpyro.sample("zeta", dist.Dirichlet(1.5 * jnp.ones(3) + jnp.eye(3)))
    pi = numpyro.sample("pi", dist.Dirichlet(2 * jnp.ones(3)))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer=PARALLEL)
        with numpyro.plate("position", 4):
            numpyro.sample("y", dist.Categorical(zeta[c]), obs=labels)


@case(ANNOTATION + "dawid_skene", WHO, LABELS, at_mode="beta pi")
def annotators(who, labels):
    with numpyro.plate("annotator", 3, dim=-2), numpyro.plate("class", 3):
        beta = numpyro.sample("beta", dist.Dirichlet(1.5 * jnp.ones(3) + jnp.eye(3)))
    pi = numpyro.sample("pi", dist.Dirichlet(2 * jnp.ones(3)))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer=PARALLEL)
        with numpyro.plate("position", 4):
            numpyro.sample("y", dist.Categorical(Vindex(beta)[who, c, :]), obs=labels)


@case(ANNOTATION + "mace", WHO[:2], LABELS[:3, :2], at_mode="epsilon theta")
def spamming_annotators(who, labels):
    """A class and, for each label, whether it was given in earnest: probabilities of exactly 0."""
    with numpyro.plate("annotator", 2):
        epsilon = numpyro.sample("epsilon", dist.Dirichlet(jnp.full(3, 10.0)))
        theta = numpyro.sample("theta", dist.Beta(2.5, 1.5))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.DiscreteUniform(0, 2), infer=PARALLEL)
        with numpyro.plate("position", 2):
            s = numpyro.sample("s", dist.Bernoulli(1 - theta[who]), infer=PARALLEL)
            probs = jnp.where(s[..., None] == 0, jax.nn.one_hot(c, 3), epsilon[who])
            numpyro.sample("y", dist.Categorical(probs), obs=labels)


def items_by_nodes(params, labels):
    """A class and one number an item, by 60 nodes for the number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    logits = params["eta"][:, None] + params["chi"][:, None] * nodes
    each = dist.Bernoulli(logits=logits).log_prob(labels[..., None, None]).sum(1)
    each += jnp.log(params["pi"])[:, None] + jnp.log(weights / weights.sum())
    prior = dist.Normal(jnp.array([-1.0, 1.0]), 1.0).log_prob(params["eta"]).sum()
    prior += dist.Gamma(4.0, 4.0).log_prob(params["chi"]).sum()
    prior += dist.Dirichlet(2 * jnp.ones(2)).log_prob(params["pi"])
    return jax.scipy.special.logsumexp(each, axis=(1, 2)).sum() + prior


@case(
    ANNOTATION + "item_difficulty",
    np.minimum(LABELS, 1),
    at_mode="eta chi pi",
    e_step="quadrature",
    verdict="quadrature",
    formula=items_by_nodes,
)
def difficult_items(labels):
    """Continuous latents whose law depends on a discrete one."""
    with numpyro.plate("class", 2):
        eta = numpyro.sample("eta", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
        chi = numpyro.sample("chi", dist.Gamma(4.0, 4.0))
    pi = numpyro.sample("pi", dist.Dirichlet(2 * jnp.ones(2)))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer=PARALLEL)
        with handlers.reparam(config={"theta": LocScaleReparam(0)}):
            theta = numpyro.sample("theta", dist.Normal(eta[c], chi[c]))
        with numpyro.plate("position", 4):
            numpyro.sample("y", dist.Bernoulli(logits=theta), obs=labels)


AGE = np.array([22.0, 38.0, 26.0, 35.0, 54.0, 2.0, 27.0, 14.0])
SEX = np.array([1, 0, -1, 0, 1, 1, -1, 0])
LIVED = np.array([0, 1, 1, 1, 0, 0, 1, 1])


@case("notebooks/source/discrete_imputation.ipynb: model", SEX, LIVED, masked=6 * np.log(2))
def missing_categories(sex, lived):
    """Unknown categories are latent, the known ones observed, by one site each."""
    p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
    survival = numpyro.param(
        "survival", jnp.array([0.4, 0.6]), constraint=constraints.unit_interval
    )
    known = sex >= 0
    with numpyro.plate("rows", len(sex)):
        site = numpyro.sample(
            "sex", dist.Bernoulli(p), obs=jnp.where(known, sex, 0), obs_mask=known
        )
        numpyro.sample("lived", dist.Bernoulli(Vindex(survival)[site]), obs=lived)
    numpyro.sample("prior", dist.Beta(2.0, 2.0).expand([2]).to_event(1), obs=survival)


def ages_integrated(params, age, lived):
    seen = ~np.isnan(age)
    known = jnp.where(seen, age, 0.0)
    slope, mean = params["slope"], params["mean"]
    both = dist.Normal(mean, 1.0).log_prob(known) + dist.Normal(slope * known, 1.0).log_prob(lived)
    alone = dist.Normal(slope * mean, jnp.sqrt(1 + slope**2)).log_prob(lived)
    return jnp.sum(jnp.where(seen, both, alone))


MISSING_AGE = np.where(AGE > 50, np.nan, AGE / 10)


@case(
    "notebooks/source/bayesian_imputation.ipynb: model", MISSING_AGE, LIVED, formula=ages_integrated
)
def missing_ages(age, lived):
    mean = numpyro.param("mean", 2.0)
    slope = numpyro.param("slope", 0.0)
    with numpyro.plate("rows", len(age)):
        known = ~np.isnan(age)
        age = numpyro.sample("age", dist.Normal(mean, 1.0), obs=np.nan_to_num(age), obs_mask=known)
        numpyro.sample("lived", dist.Normal(slope * age, 1.0), obs=lived)


@case(
    "test/infer/test_hmc_gibbs.py: test_discrete_gibbs_multiple_sites_chain",
    np.array([4.0, 2.5, 6.1]),
)
def a_binomial_latent(y):
    p = numpyro.param("p", 0.4, constraint=constraints.unit_interval)
    with numpyro.plate("rows", len(y)):
        n = numpyro.sample("n", dist.Binomial(7, p))
        numpyro.sample("y", dist.Normal(n, 1.0), obs=y)


@case("test/infer/test_hmc_gibbs.py: test_discrete_gibbs_gmm_1d", np.array([-2.1, 0.3, 4.4, 2.2]))
def known_mixture_with_a_shift(y):
    shift = numpyro.param("shift", 0.0)
    with numpyro.plate("rows", len(y)):
        c = numpyro.sample("c", dist.Categorical(jnp.array([0.15, 0.3, 0.3, 0.25])))
        numpyro.sample("x", dist.Normal(jnp.array([-2.0, 0.0, 2.0, 4.0])[c] + shift, 0.5), obs=y)


@case(
    "examples/gaussian_shells.py: model",
    np.array([2.1, 1.2]),
    verdict="it has no free parameters to maximise",
    quick=True,
)
def nothing_to_maximize(y):
    z = numpyro.sample("z", dist.Bernoulli(0.5), infer=PARALLEL)
    numpyro.sample("y", dist.Normal(jnp.stack([-2.0, 2.0])[z], 1.0).expand([2]).to_event(1), obs=y)


class Shell(dist.Distribution):
    """A law of one's own: a noisy distance from a centre."""

    support = constraints.real_vector

    def __init__(self, center, radius, width):
        self.center, self.radius, self.width = center, radius, width
        super().__init__(batch_shape=jnp.shape(center)[:-1], event_shape=jnp.shape(center)[-1:])

    def sample(self, key, sample_shape=()):
        return jnp.zeros(sample_shape + self.shape())

    def log_prob(self, value):
        distance = jnp.linalg.norm(value - self.center, axis=-1)
        return dist.Normal(self.radius, self.width).log_prob(distance)


@case("examples/gaussian_shells.py: GaussianShell", DRAW.normal(0, 2, (6, 2)))
def a_law_of_ones_own(y):
    radius = numpyro.param("radius", 1.0, constraint=constraints.positive)
    centers = jnp.array([[-2.0, 0.0], [2.0, 0.0]])
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5), infer=PARALLEL)
        numpyro.sample("y", Shell(centers[z], radius, 0.5), obs=y)


ANGLES = np.array([0.3, 0.5, 2.8, 3.0, -2.9, 0.1])


@case("examples/ssbvm_mixture.py: ss_model, one angle", ANGLES, at_mode="weights locs")
def mixture_of_angles(y):
    weights = numpyro.sample("weights", dist.Dirichlet(2 * jnp.ones(2)))
    with numpyro.plate("parts", 2):
        locs = numpyro.sample("locs", dist.VonMises(jnp.array([0.0, 2.9]), 2.0))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights), infer=PARALLEL)
        numpyro.sample("y", dist.VonMises(locs[z], 3.0), obs=y)


@case("examples/ssbvm_mixture.py: ss_model", np.column_stack([ANGLES, ANGLES[::-1]]))
def mixture_of_two_angles(y):
    loc = numpyro.param("loc", jnp.array([0.1, 2.7]))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])), infer=PARALLEL)
        law = dist.SineBivariateVonMises(
            phi_loc=loc[z],
            psi_loc=0.3,
            phi_concentration=2.0,
            psi_concentration=2.0,
            correlation=0.5,
        )
        numpyro.sample("y", law, obs=y)


@case("test/contrib/test_enum_elbo.py, with vectors", np.array([[1, 0, 1], [0, 0, 1]]))
def vectors_of_coins(y):
    """`Bernoulli(p).to_event(1)` as a latent."""
    p = numpyro.param("p", jnp.array([0.3, 0.5, 0.8]), constraint=constraints.unit_interval)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(p).to_event(1))
        numpyro.sample("y", dist.Bernoulli(0.2 + 0.6 * z).to_event(1), obs=y)
    numpyro.sample("prior", dist.Beta(2.0, 2.0).expand([3]).to_event(1), obs=p)


@case(
    "notebooks/source/truncated_distributions.ipynb: truncated_poisson_model",
    np.array([3, 4, 2, 6, 3, 5]),
    at_mode="rate",
)
def counts_above_an_unknown_limit(y):
    low = numpyro.sample("low", dist.Categorical(0.25 * jnp.ones(4)))
    rate = numpyro.sample("rate", dist.LogNormal(1.0, 1.0))
    counts = jnp.arange(4)
    below = jnp.sum(jnp.exp(dist.Poisson(rate).log_prob(counts)) * (counts < low[..., None]), -1)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)
        numpyro.factor("kept", -jnp.log1p(-below) + jnp.where(y >= low, 0.0, -jnp.inf))
