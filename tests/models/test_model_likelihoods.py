"""Reference numbers of the models: copied faithfully, and the maximum by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_reference
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import special, stats

from ppl_em.cli import catalog

# How the flat names of tests/reference fit together into the parameter sites of each model.


def themselves(*names):
    return {name: name for name in names}


def chain(states, **more):
    numbers = range(1, states + 1)
    gamma = [[f"gamma{i}{j}" for j in numbers] for i in numbers]
    return {"gamma": gamma, "rate": [f"lambda{i}" for i in numbers], **more}


AIR = ["Ozone", "Solar.R", "Wind", "Temp"]
STUDENT = ["intercept", "femWomen", "marMarried", "kid5", "phd", "ment"]
WINE = [
    "alcalinity_of_ash",
    "alcohol",
    "ash",
    "color_intensity",
    "flavanoids",
    "hue",
    "magnesium",
    "malic_acid",
    "nonflavanoid_phenols",
    "od280_od315_of_diluted_wines",
    "proanthocyanins",
    "proline",
    "total_phenols",
]
SITES = {
    "airquality": {
        "mu": [f"mu_{a}" for a in AIR],
        "covariance": [
            [f"cov_{AIR[min(i, j)]}_{AIR[max(i, j)]}" for j in range(4)] for i in range(4)
        ],
    },
    "earthquakes": chain(2),
    "earthquakes:stationary": chain(2),
    "earthquakes:three_states": chain(3),
    "earthquakes:three_states_stationary": chain(3),
    "faithful": {
        "weights": ["w1", "w2"],
        "mean": [[f"mu{k}_{a}" for a in ("eruptions", "waiting")] for k in (1, 2)],
        "cov": [
            [
                [f"cov{k}_eruptions_eruptions", f"cov{k}_eruptions_waiting"],
                [f"cov{k}_eruptions_waiting", f"cov{k}_waiting_waiting"],
            ]
            for k in (1, 2)
        ],
    },
    "kidney": themselves("theta", "lambda", "rho", "sex", "age"),
    "kidney:lognormal": themselves("sigma2", "lambda", "rho", "sex", "age"),
    "linkage": themselves("pi"),
    "nile": themselves("sigma2_eps", "sigma2_eta"),
    "pump": themselves("alpha", "beta"),
    "seeds": {"alpha": ["alpha0", "alpha1", "alpha2", "alpha12"], "sd": "sd_re"},
    "sleepstudy": themselves("beta0", "beta1", "sd_intercept", "sd_slope", "corr", "sigma"),
    "theoph": themselves("lKe", "lKa", "lCl", "sd_lKa", "sd_lCl", "sigma"),
    "theoph:three_effects": themselves("ka", "V", "CL", "omega_ka", "omega_V", "omega_CL", "sigma"),
    "wine_factors": {"uniqueness": [f"uniq_{name}" for name in WINE]},
    "wine_factors:ppca": themselves("sigma2"),
    "zero_inflated": {part: [f"{part}_{x}" for x in STUDENT] for part in ("count", "zero")},
}

FILES = {
    "earthquakes": "earthquakes_hmm2_free",
    "earthquakes:stationary": "earthquakes_hmm2_stationary",
    "earthquakes:three_states": "earthquakes_hmm3_free",
    "earthquakes:three_states_stationary": "earthquakes_hmm3_stationary",
    "kidney": "kidney_gamma",
    "kidney:lognormal": "kidney_lognormal",
    "theoph:three_effects": "theoph_saemix",
    "wine_factors": "wine_fa2",
    "wine_factors:ppca": "wine_ppca2",
    "zero_inflated": "biochemists_zip",
}


def nested(names, values):
    """Replace the names in a nested list by their values."""
    if isinstance(names, str):
        return values[names]
    return [nested(part, values) for part in names]


@pytest.mark.parametrize("name", SITES)
def test_reference_agrees_with_the_facts(name):
    entry = catalog.find(name)
    facts = load_reference(FILES.get(name, name))["reference"]
    value = facts.get("loglik_standardised_data", facts["loglik"])
    assert entry.reference["log_likelihood"] == value
    for part, facts_part in (("params", "mle"), ("standard_errors", "se")):
        for site in entry.reference[part].keys() & SITES[name].keys():
            expected = nested(SITES[name][site], facts[facts_part])
            np.testing.assert_array_equal(entry.reference[part][site], expected, err_msg=site)


# --- the marginal log-likelihood at the reference, without this library ---


def seeds_log_likelihood(entry):
    """Integrate each plate effect by the trapezoid rule, which converges geometrically here."""
    p = entry.reference["params"]
    sites = {"alpha": p["alpha"], "sd": p["sd"]}
    data = entry.load()
    grid = jnp.linspace(-10.0, 10.0, 1001) * p["sd"]

    def log_terms(b):
        plates = {"b": jnp.full(len(data["n"]), b)}
        program = handlers.substitute(entry.model, data={**sites, **plates})
        trace = handlers.trace(program).get_trace(**data)
        return sum(trace[s]["fn"].log_prob(trace[s]["value"]) for s in ("b", "r"))

    terms = jax.jit(jax.vmap(log_terms))(grid)
    return jnp.sum(jax.scipy.special.logsumexp(terms, axis=0) + jnp.log(grid[1] - grid[0]))


def faithful_log_likelihood(entry):
    """Σ_i log Σ_k w_k Normal₂(y_i; μ_k, Σ_k)."""
    p = entry.reference["params"]
    y = np.column_stack(list(entry.load().values()))
    density = [
        w * stats.multivariate_normal(mean, cov).pdf(y)
        for w, mean, cov in zip(p["weights"], p["mean"], p["cov"], strict=True)
    ]
    return np.log(np.sum(density, axis=0)).sum()


def pump_log_likelihood(entry):
    """x_i is negative binomial with size α and success probability β / (β + t_i)."""
    p = entry.reference["params"]
    data = entry.load()
    return stats.nbinom(p["alpha"], p["beta"] / (p["beta"] + data["t"])).logpmf(data["x"]).sum()


def sleepstudy_log_likelihood(entry):
    """The rows of a subject are Normal(X β, Z Ψ Zᵀ + σ² I) with X = Z = [1, Days]."""
    p = entry.reference["params"]
    data = entry.load()
    off = p["corr"] * p["sd_intercept"] * p["sd_slope"]
    psi = np.array([[p["sd_intercept"] ** 2, off], [off, p["sd_slope"] ** 2]])
    total = 0.0
    for subject in np.unique(data["Subject"]):
        rows = data["Subject"] == subject
        z = np.column_stack([np.ones(rows.sum()), data["Days"][rows]])
        cov = z @ psi @ z.T + p["sigma"] ** 2 * np.eye(rows.sum())
        law = stats.multivariate_normal(z @ [p["beta0"], p["beta1"]], cov)
        total += law.logpdf(data["Reaction"][rows])
    return total


def linkage_log_likelihood(entry):
    """Sum the model's own log joint over every value of ``hidden``."""
    data = entry.load()
    params = entry.reference["params"]

    def log_joint(hidden):
        return log_density(entry.model, (), data, {**params, "hidden": hidden})[0]

    values = jnp.arange(data["count"][0] + 1)
    return jax.scipy.special.logsumexp(jax.jit(jax.vmap(log_joint))(values))


def airquality_log_likelihood(entry):
    """What was observed on a day is normal with its part of μ and of Σ."""
    p = entry.reference["params"]
    y = np.column_stack(list(entry.load().values()))
    total = 0.0
    for row in y:
        seen = np.flatnonzero(~np.isnan(row))
        cov = p["covariance"][np.ix_(seen, seen)]
        total += stats.multivariate_normal(p["mu"][seen], cov).logpdf(row[seen])
    return total


def earthquakes_log_likelihood(entry):
    """The forward recursion."""
    p = entry.reference["params"]
    gamma = p["gamma"]
    left = np.linalg.eig(gamma.T)
    stationary = np.real(left.eigenvectors[:, np.argmax(np.real(left.eigenvalues))])
    law = p.get("delta", stationary / stationary.sum())
    total = 0.0
    for count in entry.load()["count"]:
        joint = law * stats.poisson(p["rate"]).pmf(count)
        total += np.log(joint.sum())
        law = joint / joint.sum() @ gamma
    return total


def nile_log_likelihood(entry):
    """The flows are jointly normal: levels share their past, errors are independent."""
    p = entry.reference["params"]
    flow = entry.load()["flow"]
    year = np.arange(len(flow))
    shared = 500.0**2 + p["sigma2_eta"] * np.minimum.outer(year, year)
    cov = shared + p["sigma2_eps"] * np.eye(len(flow))
    return stats.multivariate_normal(np.full(len(flow), 1000.0), cov).logpdf(flow)


def kidney_log_likelihood(entry):
    """With d infections and cumulative hazard H, a patient has ∫ u^d exp(-u H) Gamma(u) du."""
    p, data = entry.reference["params"], entry.load()
    cumulative = p["lambda"] * data["time"] ** p["rho"]
    cumulative = cumulative * np.exp(p["sex"] * data["sex"] + p["age"] * data["age"])
    total = np.sum(data["status"] * np.log(cumulative * p["rho"] / data["time"]))
    shape = 1 / p["theta"]
    for patient in np.unique(data["id"]):
        rows = data["id"] == patient
        d, h = data["status"][rows].sum(), cumulative[rows].sum()
        total += special.gammaln(shape + d) - special.gammaln(shape)
        total += shape * np.log(shape) - (shape + d) * np.log(shape + h)
    return total


def latent_class_log_likelihood(entry):
    """Every pattern has probability Σ_k w_k Π_j π_kj^y_j (1 - π_kj)^(1 - y_j)."""
    p, data = entry.reference["params"], entry.load()
    y = np.column_stack([data[item] for item in "ABCD"])[:, None] - 1
    cell = np.prod(np.where(y == 1, p["prob"], 1 - p["prob"]), axis=2) @ p["weights"]
    return data["frequency"] @ np.log(cell)


def poisson_mixture_log_likelihood(entry):
    """A count has probability Σ_k w_k Poisson(λ_k)."""
    p, data = entry.reference["params"], entry.load()
    return data["days"] @ np.log(
        stats.poisson(p["rate"]).pmf(data["deaths"][:, None]) @ p["weights"]
    )


def zero_inflated_log_likelihood(entry):
    """0 with probability p + (1 - p) exp(-λ), else (1 - p) Poisson(λ)."""
    p, data = entry.reference["params"], entry.load()
    art = data.pop("art")
    x = np.column_stack([np.ones(len(art)), *data.values()])
    structural, rate = special.expit(x @ p["zero"]), np.exp(x @ p["count"])
    return np.log(structural * (art == 0) + (1 - structural) * stats.poisson(rate).pmf(art)).sum()


MARGINALS = {
    "airquality": airquality_log_likelihood,
    "earthquakes": earthquakes_log_likelihood,
    "earthquakes:stationary": earthquakes_log_likelihood,
    "earthquakes:three_states": earthquakes_log_likelihood,
    "earthquakes:three_states_stationary": earthquakes_log_likelihood,
    "faithful": faithful_log_likelihood,
    "kidney": kidney_log_likelihood,
    "latent_class": latent_class_log_likelihood,
    "linkage": linkage_log_likelihood,
    "nile": nile_log_likelihood,
    "poisson_mixture": poisson_mixture_log_likelihood,
    "pump": pump_log_likelihood,
    "seeds": seeds_log_likelihood,
    "sleepstudy": sleepstudy_log_likelihood,
    "zero_inflated": zero_inflated_log_likelihood,
}


@pytest.mark.parametrize("name", MARGINALS)
def test_marginal_log_likelihood_at_the_reference(name):
    entry = catalog.find(name)
    computed = float(MARGINALS[name](entry))
    assert computed == pytest.approx(entry.reference["log_likelihood"], abs=1e-8, rel=0)


def test_role_conflict_has_the_published_deviance():
    entry = catalog.find("latent_class")
    frequency = entry.load()["frequency"]
    saturated = np.sum(frequency * np.log(frequency / frequency.sum()))
    assert 2 * (saturated - latent_class_log_likelihood(entry)) == pytest.approx(2.720, abs=5e-4)


def test_linkage_marginal_is_the_four_cell_multinomial():
    entry = catalog.find("linkage")
    pi = entry.reference["params"]["pi"]
    probs = [0.5 + pi / 4, (1 - pi) / 4, (1 - pi) / 4, pi / 4]
    direct = stats.multinomial(197, probs).logpmf(entry.load()["count"])
    assert direct == pytest.approx(entry.reference["log_likelihood"], abs=1e-8, rel=0)
