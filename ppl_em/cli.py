"""The command line: `ppl-em fit | compare | models`."""

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import logging
import os
import pathlib
import sys
import traceback
import warnings
from typing import Any

import jax
import numpy as np
import numpyro

from ppl_em import catalog, e_step, m_step
from ppl_em.audit import Audit
from ppl_em.compare import Comparison, compare_e_steps
from ppl_em.em import EM
from ppl_em.params import flat_labels
from ppl_em.plots import plot_fit
from ppl_em.result import EMResult
from ppl_em.validation import ModelError

OK, NOT_CONVERGED, UNUSABLE = 0, 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 converged, 1 ran but not converged, 2 unusable input (one line on stderr).
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if getattr(options, "verbose", False):
        logging.getLogger("ppl_em").setLevel(logging.INFO)
    _configure_jax()
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("ppl-em: interrupted before the first step", file=sys.stderr)
        return NOT_CONVERGED
    except Exception as error:
        if getattr(options, "verbose", False) and not isinstance(error, ModelError):
            traceback.print_exc()
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        print(f"ppl-em: {kind}{' '.join(str(error).split())[:600]}", file=sys.stderr)
        return UNUSABLE


def _configure_jax() -> None:
    """Double precision, quick compilation, and compiled programs kept between runs.

    Tracing allocates much that lives on: a collector that looks through it takes a fifth of a run.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    numpyro.enable_x64()
    if importlib.metadata.version("jaxlib") < "0.11":  # later versions refuse the flag
        # A third less time to compile, for a tenth more to run: right for one fit per process.
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "ppl-em"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ppl-em", description="Fit NumPyro models by Expectation-Maximization."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="fit a model and print its estimates")
    _add_model(fit)
    fit.add_argument("--e-step", default="auto", choices=list(e_step.FLAGS))
    fit.add_argument("--algorithm", default="em", choices=["em", "direct", "hybrid"])
    fit.add_argument("--out", metavar="FILE.nc", help="save the fit (netCDF, for ArviZ)")
    fit.add_argument("--plot", metavar="FILE.png", help="save a picture of the fit")
    fit.add_argument("--audit", action="store_true", help="ask a stronger E-step how far off it is")
    fit.add_argument("--reference", action="store_true", help="show the model's reference answer")
    fit.set_defaults(run=_fit)

    compare = commands.add_parser("compare", help="fit a model under several E-steps")
    _add_model(compare)
    compare.add_argument(
        "--e-steps", default="mean_field,nuts", metavar="A,B,...", help="flags, comma-separated"
    )
    compare.add_argument("--out", metavar="FILE.nc", help="save the table (netCDF, for ArviZ)")
    compare.add_argument("--plot", metavar="FILE.png", help="save a forest plot")
    compare.add_argument("--no-audit", action="store_true", help="do not audit the fits")
    compare.set_defaults(run=_compare)

    models = commands.add_parser("models", help="list the models that come with ppl-em")
    models.set_defaults(run=_models)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="NAME, file.py, or either with `:function`")
    parser.add_argument("--data", metavar="CSV", help="columns go to the arguments of that name")
    parser.add_argument("--m-step", default="auto", choices=list(m_step.FLAGS))
    parser.add_argument(
        "--map-sites", default="", metavar="A,B,...", help="sample sites to maximise"
    )
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verbose", action="store_true", help="say what was decided, and why")
    parser.add_argument("--no-progress", action="store_true", help="hide the progress bar")


def _prepare(options: argparse.Namespace, entry: catalog.Entry) -> tuple[EM, dict[str, Any]]:
    """The model with its options, and `run`'s keyword arguments, the data among them."""
    data = catalog.read_csv(options.data, entry.model) if options.data else entry.load()
    em = EM(
        entry.model,
        m_step=options.m_step,
        map_sites=tuple(filter(None, options.map_sites.split(","))),
        max_steps=options.max_steps,
    )
    bar = not options.no_progress and sys.stderr.isatty()
    return em, {"progress_bar": bar, **data}


def _fit(options: argparse.Namespace) -> int:
    if options.algorithm != "em":
        raise ModelError(
            f"Option --algorithm: '{options.algorithm}' is not available in this version. Use 'em'."
        )
    entry = catalog.find(options.model)
    reference = entry.reference if options.reference and not options.data else None
    em, data = _prepare(options, entry)
    key = jax.random.key(options.seed)
    result = dataclasses.replace(em, e_step=options.e_step).run(key, **data)
    audit = result.audit(jax.random.fold_in(key, 1)) if options.audit else None
    if options.json:
        print(json.dumps(as_json(result, audit)))
    else:
        print(_report(result, entry, reference))
        if audit is not None:
            print(f"\nAudit by {audit.e_step}, {audit.seconds:.1f} s\n{audit}")
    notes = sys.stderr if options.json else sys.stdout
    if options.out:
        result.save(options.out)
        print(f"Fit saved in {options.out}", file=notes)
    if options.plot:
        plot_fit(result, reference).savefig(options.plot, dpi=110)
        print(f"Picture saved in {options.plot}", file=notes)
    return OK if result.converged else NOT_CONVERGED


def _compare(options: argparse.Namespace) -> int:
    entry = catalog.find(options.model)
    flags = [flag.strip() for flag in options.e_steps.split(",") if flag.strip()]
    em, data = _prepare(options, entry)
    key = jax.random.key(options.seed)
    found = compare_e_steps(em, flags, key, audit=not options.no_audit, **data)
    if options.json:
        print(json.dumps(_comparison_as_json(found)))
    else:
        print(found)
    notes = sys.stderr if options.json else sys.stdout
    if options.out:
        found.to_datatree().to_netcdf(options.out, engine="h5netcdf")
        print(f"Table saved in {options.out}", file=notes)
    if options.plot:
        reference = None if options.data else entry.reference
        found.plot(reference).savefig(options.plot, dpi=110)
        print(f"Picture saved in {options.plot}", file=notes)
    converged = not found.refused and all(r.converged for r in found.results.values())
    return OK if converged else NOT_CONVERGED


def _models(options: argparse.Namespace) -> int:
    found = catalog.entries()
    width = max(len(entry.name) for entry in found)
    for entry in found:
        print(f"{entry.name:{width}s}  {entry.title}")
    return OK


def as_json(result: EMResult, audit: Audit | None = None) -> dict[str, Any]:
    """The fit, and its audit if there is one, as plain numbers; what is not available is null."""
    likelihood = result.log_likelihood
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        errors = result.standard_errors()
    found = {
        "params": _plain(result.params),
        "standard_errors": _plain(errors),
        "standard_errors_note": result.uncertainty.reason or result.uncertainty.note,
        "mcse": _plain(result.mcse()),
        "log_likelihood": _plain(likelihood._asdict()),
        "converged": result.converged,
        "status": result.status.value,
        "num_steps": result.num_steps,
        "e_step": result.e_step,
        "seconds": result.seconds,
    }
    return found if audit is None else found | {"audit": _audit_as_json(audit)}


def _audit_as_json(audit: Audit) -> dict[str, Any]:
    """Shifts by parameter in standard errors, and the rest under its own names."""
    found = {f.name: getattr(audit, f.name) for f in dataclasses.fields(audit)}
    found["log_likelihood"] = audit.log_likelihood._asdict()
    for name, values in found.items():
        if isinstance(values, np.ndarray):
            found[name] = dict(zip(audit.labels, values.tolist(), strict=True))
    return _plain(found)


def _comparison_as_json(found: Comparison) -> dict[str, Any]:
    report = {name: as_json(fit, found.audits.get(name)) for name, fit in found.results.items()}
    return report | {name: {"error": text} for name, text in found.refused.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if isinstance(value, float | np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if array.ndim:
            return [_plain(child) for child in array]
        number = array.item()
        return number if not isinstance(number, float) or np.isfinite(number) else None
    return value


def _report(result: EMResult, entry: catalog.Entry, reference: dict[str, Any] | None) -> str:
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
    lines = [f"{entry.name}: {entry.title}", "", *_aligned(result.labels, table), ""]
    lines.append(f"log-likelihood  {result.log_likelihood}{result.doubt}")
    if reference is not None:
        lines.append(f"reference       {reference['log_likelihood']:.6f} ({reference['kind']})")
    if result.uncertainty.reason:
        lines.append(f"standard errors not available: {result.uncertainty.reason}")
    else:
        lines.append(f"standard errors {result.uncertainty.method}")
    if result.uncertainty.note:
        lines.append(f"                {result.uncertainty.note}")
    seconds = result.seconds
    lines.append(
        f"E-step          {result.e_step}, {result.num_steps} steps, {seconds['total']:.1f} s "
        f"({seconds['compile']:.1f} s of it compiling and warming up)"
    )
    lines.append(result.status.value)
    return "\n".join(lines)


def _aligned(labels: list[str], table: dict[str, np.ndarray]) -> list[str]:
    """Lines of a table; pandas would take a quarter of a second to import."""
    first = ["parameter", *labels]
    cells = [[name, *(f"{v:.4f}" for v in values)] for name, values in table.items()]
    columns = [[text.rjust(max(map(len, column))) for text in column] for column in cells]
    names = [name.ljust(max(map(len, first))) for name in first]
    return ["  ".join(line) for line in zip(names, *columns, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
