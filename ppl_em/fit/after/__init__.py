"""What is asked of a finished fit."""

from ppl_em.fit.after.inquiry import Inquiry

__all__ = ["Inquiry"]
