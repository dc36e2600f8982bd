"""The command line: `ppl-em fit | compare | show | models`."""

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpyro

from ppl_em import e_step, m_step
from ppl_em.algorithms import ACCELERATORS, METHODS
from ppl_em.cli import catalog
from ppl_em.cli.columns import read_csv
from ppl_em.cli.output import check_places, no_quiet_exit, own_words_aside, save_figure
from ppl_em.cli.report import as_json, comparison_as_json, plain, report
from ppl_em.compare import (
    ALGORITHMS,
    AlgorithmComparison,
    Comparison,
    compare_algorithms,
    compare_e_steps,
)
from ppl_em.direct import Direct, directly
from ppl_em.em import EM
from ppl_em.result import load, plot_fit, write_tree
from ppl_em.util import ModelError, alone, enable_cache, printable

logger = logging.getLogger("ppl_em")

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
    options.answer = None
    try:
        # One command at a time has the standard output of the process.
        with alone(), own_words_aside(options), no_quiet_exit():
            status = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("ppl-em: interrupted before the first step", file=sys.stderr)
        return NOT_CONVERGED
    except BaseException as error:  # `sys.exit` in a model, too: no fit was finished
        if getattr(options, "verbose", False) and not isinstance(error, ModelError):
            traceback.print_exc()
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        text = printable(" ".join(str(error).split()))[:600]
        print(f"ppl-em: {kind}{text}", file=sys.stderr)
        return UNUSABLE


def _configure_jax() -> None:
    """Double precision, quick compilation, and compiled programs kept between runs.

    Tracing allocates much that lives on: a collector that looks through it takes a fifth of a run.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    numpyro.enable_x64()
    minor = int(importlib.metadata.version("jaxlib").split(".")[1])
    if minor < 11:  # later versions refuse the flag
        # A third less time to compile, for a tenth more to run: right for one fit per process.
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    try:
        enable_cache()
    except ModelError as error:  # a home that cannot be written: every run compiles anew
        logger.info("%s", error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ppl-em", description="Fit NumPyro models by Expectation-Maximization."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="fit a model and print its estimates")
    _add_model(fit)
    fit.add_argument("--e-step", default="auto", choices=list(e_step.FLAGS))
    fit.add_argument(
        "--algorithm",
        default="hybrid",
        choices=["em", "direct", "hybrid"],
        help="em: EM steps alone; direct: none; hybrid (default): Newton steps where EM is slow",
    )
    fit.add_argument("--method", default="auto", choices=METHODS, help="of the direct algorithm")
    fit.add_argument("--acceleration", choices=list(ACCELERATORS), help="of EM")
    fit.add_argument("--num-restarts", type=int, default=1, metavar="N", help="starts in all")
    fit.add_argument("--out", metavar="FILE.nc", help="save the fit (netCDF, for ArviZ)")
    fit.add_argument("--plot", metavar="FILE.png", help="save a picture of the fit")
    fit.add_argument("--audit", action="store_true", help="ask a stronger E-step how far off it is")
    fit.add_argument("--diagnose", action="store_true", help="list what speaks against the fit")
    fit.add_argument("--reference", action="store_true", help="show the model's reference answer")
    fit.set_defaults(run=_fit)

    compare = commands.add_parser(
        "compare", help="fit a model under several E-steps, or by several algorithms"
    )
    _add_model(compare)
    compare.add_argument(
        "--e-steps", default="mean_field,nuts", metavar="A,B,...", help="flags, comma-separated"
    )
    compare.add_argument(
        "--algorithms", metavar="A,B,...", help=f"out of {', '.join(ALGORITHMS)}; with one E-step"
    )
    compare.add_argument("--e-step", default="exact", help="for --algorithms")
    compare.add_argument("--tol", type=float, default=1e-6, help="gap at which a fit has arrived")
    compare.add_argument("--out", metavar="FILE.nc", help="save the table (netCDF, for ArviZ)")
    compare.add_argument("--plot", metavar="FILE.png", help="save a forest plot")
    compare.add_argument("--no-audit", action="store_true", help="do not audit the fits")
    compare.set_defaults(run=_compare)

    show = commands.add_parser("show", help="print a saved fit, and what speaks against it")
    show.add_argument("file", metavar="FILE.nc", help="saved by `fit --out` or `EMResult.save`")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(run=_show)

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


def _key(options: argparse.Namespace) -> jax.Array:
    """The random key of a seed."""
    if not -(2**63) <= options.seed < 2**63:
        raise ModelError(
            f"Option --seed: found {options.seed}. Pass a whole number below 2**63 in size."
        )
    return jax.random.key(options.seed)


def _prepare(options: argparse.Namespace, entry: catalog.Entry) -> tuple[EM, dict[str, Any]]:
    """The model with its options, and `run`'s keyword arguments, the data among them."""
    data = read_csv(options.data, entry.model) if options.data else entry.load()
    em = EM(
        entry.model,
        m_step=options.m_step,
        map_sites=tuple(filter(None, options.map_sites.split(","))),
        max_steps=options.max_steps,
    )
    bar = not options.no_progress and sys.stderr.isatty()
    return em, {"progress_bar": bar, **data}


def _fit(options: argparse.Namespace) -> int:
    check_places(options)
    entry = catalog.find(options.model)
    reference = entry.reference if options.reference and not options.data else None
    em, data = _prepare(options, entry)
    key = _key(options)
    result = _with_algorithm(em, options).run(key, **data)
    audit = result.audit(jax.random.fold_in(key, 1)) if options.audit else None
    if options.json:
        options.answer = json.dumps(as_json(result, audit))
    else:
        print(printable(report(result, f"{entry.name}: {entry.title}", reference)))
        if audit is not None:
            print(f"\nAudit by {audit.e_step}, {audit.seconds:.1f} s\n{audit}")
        if options.diagnose:
            print(f"\nDiagnosis\n{result.diagnose(audit)}")
    notes = sys.stderr if options.json else sys.stdout
    if options.out:
        result.save(options.out)
        print(f"Fit saved in {printable(options.out)}", file=notes)
    if options.plot:
        save_figure(plot_fit(result, reference), options.plot)
        print(f"Picture saved in {options.plot}", file=notes)
    return OK if result.converged else NOT_CONVERGED


def _show(options: argparse.Namespace) -> int:
    result = load(options.file)
    if options.json:
        options.answer = json.dumps(as_json(result))
    else:
        print(printable(f"{report(result, options.file)}\n\nDiagnosis\n{result.diagnose()}"))
    return OK if result.converged else NOT_CONVERGED


def _with_algorithm(em: EM, options: argparse.Namespace) -> EM | Direct:
    """What `fit` runs."""
    em = dataclasses.replace(em, e_step=options.e_step, num_restarts=options.num_restarts)
    if options.method != "auto" and options.algorithm != "direct":
        raise ModelError("Option --method: it belongs to --algorithm direct. Add that.")
    if options.acceleration is not None and options.algorithm == "direct":
        raise ModelError("Option --acceleration: --algorithm direct has none. Leave one out.")
    if options.algorithm == "direct":
        if options.m_step != "auto":
            raise ModelError("Option --m-step: --algorithm direct has none. Use --method.")
        return directly(em, options.method)
    finish = None if options.algorithm == "em" else em.finish
    return dataclasses.replace(em, acceleration=options.acceleration, finish=finish)


def _compare(options: argparse.Namespace) -> int:
    check_places(options)
    entry = catalog.find(options.model)
    em, data = _prepare(options, entry)
    key = _key(options)
    if options.algorithms is not None:
        return _compare_algorithms(dataclasses.replace(em, e_step=options.e_step), options, data)
    flags = _listed(options.e_steps)
    found = compare_e_steps(em, flags, key, audit=not options.no_audit, **data)
    if options.json:
        options.answer = json.dumps(comparison_as_json(found))
    else:
        print(printable(str(found)))
    reference = None if options.data else entry.reference
    _write(found, options, lambda: found.plot(reference))
    converged = not found.refused and all(r.converged for r in found.results.values())
    return OK if converged else NOT_CONVERGED


def _compare_algorithms(em: EM, options: argparse.Namespace, data: dict[str, Any]) -> int:
    key, names = _key(options), _listed(options.algorithms)
    found = compare_algorithms(em, names, key, tol=options.tol, **data)
    if options.json:
        table = found.table()
        rows = {name: plain(row.to_dict()) for name, row in table.iterrows()}
        options.answer = json.dumps(rows | {"sentence": found.sentence})
    else:
        print(printable(str(found)))
    _write(found, options, found.plot)
    return OK if all(fit.converged for fit in found.results.values()) else NOT_CONVERGED


def _write(
    found: Comparison | AlgorithmComparison, options: argparse.Namespace, draw: Callable
) -> None:
    """Save the table and the figure of a comparison, where that was asked for."""
    notes = sys.stderr if options.json else sys.stdout
    if options.out:
        write_tree(found.to_datatree(), options.out)
        print(f"Table saved in {options.out}", file=notes)
    if options.plot:
        save_figure(draw(), options.plot)
        print(f"Picture saved in {options.plot}", file=notes)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _models(options: argparse.Namespace) -> int:
    found = catalog.entries()
    width = max(len(entry.name) for entry in found)
    for entry in found:
        print(f"{entry.name:{width}s}  {entry.title}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
