"""Sum out discrete latent sites: the only module that touches funsor and NumPyro's enumeration.

Imported on first use only: NumPyro's enumeration module selects funsor's JAX backend on import.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import funsor
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.contrib.funsor import config_enumerate, enum, infer_discrete, log_density, trace
from numpyro.contrib.funsor.infer_util import plate_to_enum_plate
from numpyro.distributions.util import is_identically_one

LOG_ZERO = -1e30
"""Stand-in for log 0: exp of it is 0, and sums of it stay finite in float32."""


class LogFactors(NamedTuple):
    """The log-density of a model as a sum of tables, one per sample site.

    `tables` maps a site to its array; `inputs` names the dimensions of each (plates and discrete
    sites, size by name); `sum_vars` are the discrete sites, `plates` the plates.
    """

    tables: dict[str, jax.Array]
    inputs: dict[str, OrderedDict[str, int]]
    sum_vars: frozenset[str]
    plates: frozenset[str]
    site_plates: dict[str, tuple[str, ...]]


def enumerated(model: Callable, first_available_dim: int) -> Callable:
    """Return `model` with every discrete latent site enumerated in parallel."""
    return enum(config_enumerate(model), first_available_dim)


def marginal_log_density(
    model: Callable, first_available_dim: int, args: tuple, kwargs: dict, values: dict
) -> ArrayLike:
    """Log-density of `values` with all discrete latent sites summed out; a scalar."""
    return log_density(enumerated(model, first_available_dim), args, kwargs, values)[0]


def log_factors(
    model: Callable, first_available_dim: int, args: tuple, kwargs: dict, values: dict
) -> LogFactors:
    """Evaluate every log-factor of the model, as tables over the discrete sites they touch."""
    program = handlers.substitute(enumerated(model, first_available_dim), data=values)
    with plate_to_enum_plate():
        sites = trace(program).get_trace(*args, **kwargs)
    tables: dict[str, jax.Array] = {}
    inputs: dict[str, OrderedDict[str, int]] = {}
    site_plates: dict[str, tuple[str, ...]] = {}
    sum_vars: frozenset[str] = frozenset()
    samples = {name: site for name, site in sites.items() if site["type"] == "sample"}
    frames = [frame for site in samples.values() for frame in site["cond_indep_stack"]]
    plates = frozenset(frame.name for frame in frames if frame.dim is not None)
    for name, site in samples.items():
        table = _as_funsor(site)
        # Batch dimensions in no plate get a name of this form: they are summed here.
        unnamed = frozenset(k for k in table.inputs if k.startswith("_pyro_dim_"))
        table = table.reduce(funsor.ops.add, unnamed)
        tables[name] = jnp.maximum(table.data, LOG_ZERO)
        inputs[name] = OrderedDict((k, v.size) for k, v in table.inputs.items())
        if site["infer"].get("enumerate") == "parallel" and not site["is_observed"]:
            sum_vars |= {name}
            frames = [f for f in site["cond_indep_stack"] if f.dim is not None]
            site_plates[name] = tuple(f.name for f in sorted(frames, key=lambda f: f.dim))
    return LogFactors(tables, inputs, sum_vars, plates, site_plates)


def log_normalizer(factors: LogFactors) -> jax.Array:
    """log Z: the log of the sum over all discrete sites of the product of factors; a scalar.

    Its derivative with respect to a table is that factor's posterior marginal.
    """
    tensors = [
        funsor.Tensor(
            table, OrderedDict((k, funsor.Bint[size]) for k, size in factors.inputs[name].items())
        )
        for name, table in factors.tables.items()
    ]
    with funsor.interpretations.lazy:
        result = funsor.sum_product.sum_product(
            funsor.ops.logaddexp,
            funsor.ops.add,
            tensors,
            eliminate=factors.sum_vars | factors.plates,
            plates=factors.plates,
        )
    return funsor.optimizer.apply_optimizer(result).data


def site_marginal(factors: LogFactors, weights: dict[str, jax.Array], name: str) -> jax.Array:
    """Posterior probabilities of one discrete site, shape (*plates, size of the support)."""
    kept = (*factors.site_plates[name], name)
    names = list(factors.inputs[name])
    table = weights[name]
    dropped = [k for k in names if k not in kept]
    table = table.sum(tuple(names.index(k) for k in dropped))
    names = [k for k in names if k in kept]
    present = [k for k in kept if k in names]
    return jnp.transpose(table, [names.index(k) for k in present])


def sample_discrete(
    model: Callable,
    first_available_dim: int,
    rng_key: jax.Array,
    names: tuple[str, ...],
    args: tuple,
    kwargs: dict,
) -> dict[str, jax.Array]:
    """Draw the discrete latent sites jointly from their exact conditional distribution."""
    program = infer_discrete(
        config_enumerate(model), first_available_dim=first_available_dim, rng_key=rng_key
    )
    sites = handlers.trace(handlers.seed(program, rng_key)).get_trace(*args, **kwargs)
    return {name: sites[name]["value"] for name in names}


def _as_funsor(site: dict[str, Any]) -> funsor.Tensor:
    arguments = (site["intermediates"],) if site["intermediates"] else ()
    log_prob = site["fn"].log_prob(site["value"], *arguments)
    scale = site["scale"]
    if scale is not None and not is_identically_one(scale):
        log_prob = scale * log_prob
    dim_to_name = site["infer"]["dim_to_name"]
    if all(size == 1 for size in log_prob.shape) and not dim_to_name:
        log_prob = log_prob.squeeze()
    return funsor.to_funsor(log_prob, output=funsor.Real, dim_to_name=dim_to_name)
