"""What is said where no closed form is found."""

from ppl_em.util import ModelError

REMEDY = (
    "Use e_step='nuts' (Monte Carlo EM), 'quadrature' (where at most 3 latents depend on one "
    "another), or with some bias 'laplace' or 'mean_field'."
)


class NotExactError(ModelError):
    """The model has no closed-form posterior that this version recognises."""


class ImproperError(NotExactError):
    """The posterior has a closed form, but is not a distribution at the initial parameters."""
