"""Does it stay forgotten? Relearning, membership inference, a linear probe, and other masks than the trained one."""

from .options import AuditArguments
from .run import run_audit

__all__ = ["AuditArguments", "run_audit"]
