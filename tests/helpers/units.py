"""The models of `models/` in other units: which columns scale and shift, and what becomes of θ.

A case says how its parameters look where a column is multiplied by c, or shifted by d: an exact
identity of the model, so that fits in both units can be compared after scaling back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers

from ppl_em import EM, EMResult
from ppl_em.cli import catalog

Carry = Callable[[dict, Any], dict]
"""Parameters in the old units and a factor (or shift) to those in the new ones."""


@dataclass(frozen=True)
class Case:
    """A model, what its columns scale together with, and where parameters go.

    `scales` and `shifts` are by column; `along` names further arguments that are multiplied, and
    `moved` those that are shifted, with a column; `constants` are further arguments of the model.
    """

    name: str
    scales: dict[str, Carry] = field(default_factory=dict)
    shifts: dict[str, Carry] = field(default_factory=dict)
    along: dict[str, tuple[str, ...]] = field(default_factory=dict)
    moved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    e_step: str = "auto"


def by(**powers: float) -> Carry:
    """Each parameter times a power of the factor."""
    return lambda p, c: {k: jnp.asarray(v) * c ** powers.get(k, 0) for k, v in p.items()}


def entries(**places: tuple[tuple[int, ...], float]) -> Carry:
    """Entries of vectors times a power of the factor."""

    def carry(p: dict, c: Any) -> dict:
        out = {k: jnp.asarray(v) for k, v in p.items()}
        for name, (where, power) in places.items():
            out[name] = out[name].at[np.array(where)].multiply(c**power)
        return out

    return carry


def changed(fn: Callable[[dict, Any], dict]) -> Carry:
    """Parameters with those that `fn` returns in place of the old ones."""
    return lambda p, c: {**p, **fn(p, c)}


def _normal_column(j: int, mean: str, cov: str) -> Carry:
    """Column j of normal data times c."""

    def carry(p: dict, c: Any) -> dict:
        m, v = jnp.asarray(p[mean]), jnp.asarray(p[cov])
        v = v.at[..., j, :].multiply(c).at[..., :, j].multiply(c)
        return {**p, mean: m.at[..., j].multiply(c), cov: v}

    return carry


def _normal_shift(j: int, mean: str) -> Carry:
    return lambda p, d: {**p, mean: jnp.asarray(p[mean]).at[..., j].add(d)}


def _random_slope_shift(p: dict, d: Any) -> dict:
    """Days later by d: the line and its random effects at another origin."""
    a, s, r = p["sd_intercept"], p["sd_slope"], p["corr"]
    variance = a**2 - 2 * d * r * a * s + d**2 * s**2
    return {
        "beta0": p["beta0"] - d * p["beta1"],
        "sd_intercept": jnp.sqrt(variance),
        "corr": (r * a - d * s) / jnp.sqrt(variance),
    }


def _lbase_shift(p: dict, d: Any) -> dict:
    b = jnp.asarray(p["beta"])
    return {"beta": b.at[0].add(-d * b[1]).at[2].add(-d * b[5])}


def _intercept(name: str, j: int) -> Carry:
    def carry(p: dict, d: Any) -> dict:
        b = jnp.asarray(p[name])
        return {**p, name: b.at[0].add(-d * b[j])}

    return carry


def _both(*parts: Carry) -> Carry:
    def carry(p: dict, c: Any) -> dict:
        for part in parts:
            p = part(p, c)
        return p

    return carry


def _x1_shift(p: dict, d: Any) -> dict:
    a = jnp.asarray(p["alpha"])
    return {"alpha": a.at[0].add(-d * a[1]).at[2].add(-d * a[3])}


AIR = ("Ozone", "Solar_R", "Wind", "Temp")
OLD = ("eruptions", "waiting")


def _kidney(name: str) -> Case:
    return Case(
        name,
        scales={
            "time": changed(lambda p, c: {"lambda": p["lambda"] * c ** -p["rho"]}),
            "age": by(age=-1),
        },
        shifts={"age": changed(lambda p, d: {"lambda": p["lambda"] * jnp.exp(-d * p["age"])})},
    )


SAME: Carry = by()

CASES = [
    Case(
        "airquality",
        scales={name: _normal_column(j, "mu", "covariance") for j, name in enumerate(AIR)},
        shifts={name: _normal_shift(j, "mu") for j, name in enumerate(AIR)},
    ),
    Case(
        "eight_schools",
        scales={"y": by(mu=1, tau=1)},
        along={"y": ("sigma",)},
        shifts={"y": changed(lambda p, d: {"mu": p["mu"] + d})},
    ),
    Case(
        "epil",
        scales={
            "lbase": entries(beta=((1, 5), -1)),
            "lage": entries(beta=((3,), -1)),
            "V4": entries(beta=((4,), -1)),
        },
        shifts={
            "lbase": changed(_lbase_shift),
            "lage": _intercept("beta", 3),
            "V4": _intercept("beta", 4),
        },
    ),
    Case(
        "faithful",
        scales={name: _normal_column(j, "mean", "cov") for j, name in enumerate(OLD)},
        shifts={name: _normal_shift(j, "mean") for j, name in enumerate(OLD)},
    ),
    _kidney("kidney"),
    _kidney("kidney:lognormal"),
    Case("local_level", scales={"y": by(q=2, r=2)}),
    Case("local_level:noncentered", scales={"y": by(q=2, r=2)}),
    Case(
        "nile",
        scales={"flow": by(sigma2_eps=2, sigma2_eta=2)},
        along={"flow": ("prior_mean", "prior_sd")},
        shifts={"flow": SAME},
        moved={"flow": ("prior_mean",)},
        constants={"prior_mean": 1000.0, "prior_sd": 500.0},
    ),
    Case("pump", scales={"t": by(beta=1)}),
    Case(
        "seeds",
        scales={"x1": entries(alpha=((1, 3), -1)), "x2": entries(alpha=((2, 3), -1))},
        shifts={"x1": changed(_x1_shift)},
    ),
    Case(
        "sleepstudy",
        scales={
            "Days": by(beta1=-1, sd_slope=-1),
            "Reaction": by(beta0=1, beta1=1, sd_intercept=1, sd_slope=1, sigma=1),
        },
        shifts={
            "Days": changed(_random_slope_shift),
            "Reaction": changed(lambda p, d: {"beta0": p["beta0"] + d}),
        },
    ),
    Case(
        "theoph",
        scales={
            "Dose": changed(lambda p, c: {"lCl": p["lCl"] + jnp.log(c)}),
            "Time": changed(
                lambda p, c: {k: p[k] - jnp.log(c) for k in ("lKe", "lKa", "lCl")},
            ),
            "conc": changed(lambda p, c: {"lCl": p["lCl"] - jnp.log(c), "sigma": p["sigma"] * c}),
        },
    ),
    Case(
        "theoph:three_effects",
        scales={
            "Dose": by(V=1, CL=1),
            "Time": by(ka=-1, CL=-1),
            "conc": by(V=-1, CL=-1, sigma=1),
        },
    ),
    Case(
        "wine_factors:ppca",
        scales={"proline": SAME, "hue": SAME},
        shifts={"proline": SAME},
    ),
    Case("wine_factors", scales={"proline": SAME}, shifts={"hue": SAME}),
    Case(
        "zero_inflated",
        scales={
            "kid5": entries(count=((3,), -1), zero=((3,), -1)),
            "phd": entries(count=((4,), -1), zero=((4,), -1)),
            "ment": entries(count=((5,), -1), zero=((5,), -1)),
        },
        shifts={
            "phd": _both(_intercept("count", 4), _intercept("zero", 4)),
            "ment": _both(_intercept("count", 5), _intercept("zero", 5)),
        },
    ),
]
"""Left out are models of counts, categories and answers, without a unit; and `two_latents`, whose
noise is 1 by definition."""


def data_of(case: Case) -> dict[str, Any]:
    """The data of a case, numbers as floats, with the constants of its model."""
    columns = set(case.scales) | set(case.shifts)
    columns |= {name for names in (*case.along.values(), *case.moved.values()) for name in names}
    loaded = catalog.find(case.name).load()
    floats = {k: np.asarray(v, float) if k in columns else v for k, v in loaded.items()}
    return {**floats, **case.constants}


def in_units(case: Case, data: dict, column: str, factor: float) -> dict:
    """The data with a column, and what goes with it, multiplied."""
    names = (column, *case.along.get(column, ()))
    return {k: v * factor if k in names else v for k, v in data.items()}


def shifted(case: Case, data: dict, column: str, by: float) -> dict:
    """The data with a column, and what goes with it, shifted."""
    names = (column, *case.moved.get(column, ()))
    return {k: v + by if k in names else v for k, v in data.items()}


def initial(case: Case, data: dict) -> dict:
    """The model's own initial values."""
    trace = handlers.trace(handlers.seed(catalog.find(case.name).model, 0)).get_trace(**data)
    return {k: s["value"] for k, s in trace.items() if s["type"] == "param"}


def fit(case: Case, data: dict, start: dict, e_step: str = "", **options: Any) -> EMResult:
    """A fit from a start."""
    em = EM(catalog.find(case.name).model, e_step=e_step or case.e_step, **options)
    return em.run(jax.random.key(0), progress_bar=False, init_params=start, **data)


def flat(params: dict) -> np.ndarray:
    """All parameters, (P,), sorted by name."""
    return np.asarray(ravel_pytree({k: jnp.asarray(v, float) for k, v in params.items()})[0])


@dataclass(frozen=True)
class Difference:
    """How far a fit in other units is from the one it should be.

    `estimates` is the largest difference in standard errors, `errors` the largest relative one of
    these, `statuses` and `missing` what the fits say, and which standard errors only one has.
    """

    estimates: float
    errors: float
    statuses: tuple[str, str]
    missing: tuple[str, ...]

    def passes(self) -> bool:
        """To 1e-5 standard errors, and these to 1e-4."""
        same = self.statuses[0] == self.statuses[1] and not self.missing
        return same and self.estimates < 1e-5 and self.errors < 1e-4


def compare(base: EMResult, other: EMResult, carry: Callable[[dict], dict]) -> Difference:
    """What becomes of `base` in other units, against the fit there."""
    params = {k: jnp.asarray(v, float) for k, v in base.params.items()}
    vector, unravel = ravel_pytree(params)
    wanted, jacobian = (
        np.asarray(f(lambda v: ravel_pytree(carry(unravel(v)))[0])(vector))
        for f in (lambda f: f, jax.jacfwd)
    )
    covariance = np.array(base.uncertainty.covariance)
    lost = ~np.isfinite(np.diag(covariance))
    covariance[lost], covariance[:, lost] = 0.0, 0.0
    se = np.sqrt(np.diag(jacobian @ covariance @ jacobian.T))
    gone = np.abs(jacobian) @ lost > 0
    found = np.sqrt(np.diag(other.uncertainty.covariance))
    missing = np.flatnonzero(gone != ~np.isfinite(found))
    known = ~gone & np.isfinite(found) & (se > 0)
    away = np.abs(flat(other.params) - wanted)[known] / se[known]
    ratio = np.abs(found / np.where(se > 0, se, 1.0) - 1)[known]
    return Difference(
        float(np.max(away, initial=0.0)),
        float(np.max(ratio, initial=0.0)),
        (base.status.name, other.status.name),
        tuple(base.labels[i] for i in missing),
    )
