"""What the command line prints: a fit as lines of text, or as plain numbers for JSON."""

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np

from ppl_em.compare import Comparison
from ppl_em.params import flat_labels
from ppl_em.result import Audit, EMResult, remarks


def as_json(result: EMResult, audit: Audit | None = None) -> dict[str, Any]:
    """The fit, and its audit if there is one, as plain numbers; what is not available is null."""
    likelihood = result.log_likelihood
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        errors = result.standard_errors()
    found = {
        "params": plain(result.params),
        "standard_errors": plain(errors),
        "standard_errors_note": result.uncertainty.reason or result.uncertainty.note,
        "active_constraints": [plain(c._asdict()) for c in result.active_constraints],
        "mcse": plain(result.mcse()),
        "log_likelihood": plain(likelihood._asdict()),
        "converged": result.converged,
        "status": result.status.value,
        "boundary": {k: plain(where._asdict()) for k, where in result.boundary.items()},
        "num_steps": result.num_steps,
        "e_step": result.e_step,
        "e_step_reason": result.e_step_reason,
        "seconds": result.seconds,
    }
    if result.certificate is not None:
        found["certificate"] = plain(result.certificate._asdict())
    if result.penalties:
        found |= {"penalised": result.penalised, "penalties": plain(result.penalties)}
    found["diagnosis"] = [plain(finding._asdict()) for finding in result.diagnose(audit)]
    if result.degeneracy:
        found["degeneracy"] = result.degeneracy
    if result.restarts is not None:
        found["restarts"] = plain(result.restarts.as_dict())
    return found if audit is None else found | {"audit": _audit_as_json(audit)}


def _audit_as_json(audit: Audit) -> dict[str, Any]:
    """Shifts by parameter in standard errors, and the rest under its own names."""
    found = {f.name: getattr(audit, f.name) for f in dataclasses.fields(audit)}
    found["log_likelihood"] = audit.log_likelihood._asdict()
    for name, values in found.items():
        if isinstance(values, np.ndarray):
            found[name] = dict(zip(audit.labels, values.tolist(), strict=True))
    return plain(found)


def comparison_as_json(found: Comparison) -> dict[str, Any]:
    """Every fit under its name, as `as_json`; the reason for those that were refused."""
    fits = {name: as_json(fit, found.audits.get(name)) for name, fit in found.results.items()}
    return fits | {name: {"error": text} for name, text in found.refused.items()}


def plain(value: Any) -> Any:
    """Lists, dictionaries and Python scalars of the same numbers; None for what is not finite."""
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, float | np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if array.ndim:
            return [plain(child) for child in array]
        number = array.item()
        return number if not isinstance(number, float) or np.isfinite(number) else None
    return value


def report(result: EMResult, title: str, reference: dict[str, Any] | None = None) -> str:
    """The fit in lines: estimates, likelihood, how it ended; beside a reference if given."""
    table = result.table()
    if reference is not None:
        known = dict(
            zip(
                flat_labels(reference["params"]),
                np.concatenate([np.ravel(v) for v in jax.tree.leaves(reference["params"])]),
                strict=True,
            )
        )
        table["reference"] = np.array([known.get(label, np.nan) for label in result.labels])
        with np.errstate(divide="ignore", invalid="ignore"):  # no errors of fixed values
            table["off by (se)"] = (table["estimate"] - table["reference"]) / table["se"]
    shown = result.uncertainty.shown(len(result.labels))
    labels = [result.labels[i] for i in shown]
    table = {name: column[shown] for name, column in table.items()}
    lines = [title, "", *_aligned(labels, table), ""]
    penalised = f", penalised {result.penalised:.6f}" if result.penalties else ""
    lines.append(f"log-likelihood  {result.log_likelihood}{result.doubt}{penalised}")
    if reference is not None:
        lines.append(f"reference       {reference['log_likelihood']:.6f} ({reference['kind']})")
    if result.uncertainty.reason:
        lines.append(f"standard errors not available: {result.uncertainty.reason}")
    else:
        lines.append(f"standard errors {result.uncertainty.method}")
    if result.uncertainty.note:
        lines.append(f"                {result.uncertainty.note}")
    for constraint in result.active_constraints:
        lines.append(f"constraint      {constraint}")
    seconds = result.seconds
    lines.append(
        f"E-step          {result.e_step}, {result.num_steps} steps, {seconds['total']:.1f} s "
        f"({seconds['compile']:.1f} s of it compiling and warming up)"
    )
    lines += [result.status.value, *remarks(result)]
    if result.restarts is not None:
        lines += ["", str(result.restarts)]
    return "\n".join(lines)


def _aligned(labels: list[str], table: dict[str, np.ndarray]) -> list[str]:
    """Lines of a table; pandas would take a quarter of a second to import."""
    first = ["parameter", *labels]
    cells = [[name, *(f"{v:.4f}" for v in values)] for name, values in table.items()]
    columns = [[text.rjust(max(map(len, column))) for text in column] for column in cells]
    names = [name.ljust(max(map(len, first))) for name in first]
    return ["  ".join(line) for line in zip(names, *columns, strict=True)]
