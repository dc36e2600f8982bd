"""What was checked before a maximum was claimed."""

from typing import NamedTuple


class Certificate(NamedTuple):
    """The log-likelihood around the returned parameters, priors and penalties included.

    Attributes
    ----------
    promised_gain
        g' I⁻¹ g / 2, in nats: what a Newton step from there would gain, with g the score and I the
        observed information.
    largest_score
        The longest that this step is for any parameter, in its standard errors.
    smallest_eigenvalue
        Of I, scaled to a unit diagonal: positive at a maximum that is strict.
    held
        Parameters that this leaves out: at a bound, along an active constraint, or not identified.
    kind
        `"information"`: by I itself. `"lanczos"`: by products with I, where I is too large.
        `"gradient"`: I is not available, nothing is known but the score. `"monte_carlo"`: by draws.
    direction
        Parameters along which the log-likelihood curves upwards; empty at a maximum.

    Examples
    --------
    With the `result` of the example of `ppl_em.EM`:

    >>> result.certificate.kind, result.certificate.promised_gain < 1e-6
    ('information', True)
    """

    promised_gain: float
    largest_score: float
    smallest_eigenvalue: float
    held: tuple[str, ...] = ()
    kind: str = "information"
    direction: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: list | None) -> "Certificate | None":
        """The record from the list that a file holds."""
        if stored is None:
            return None
        gain, score, eigenvalue, held, kind, direction = stored
        return cls(gain, score, eigenvalue, tuple(held), kind, tuple(direction))

    def __str__(self) -> str:
        if self.kind == "gradient":
            return "certificate: the information is not available, only the score was looked at"
        text = (
            f"certificate: a Newton step would gain {self.promised_gain:.1e} nats and be "
            f"{self.largest_score:.1e} standard errors long; smallest eigenvalue of the scaled "
            f"information {self.smallest_eigenvalue:.1e}"
        )
        if self.direction:
            text += f", in the direction of {', '.join(self.direction)}"
        if self.kind != "information":
            text += f" (by {self.kind.replace('_', ' ')})"
        return text + (f"; without {', '.join(self.held)}" if self.held else "")
