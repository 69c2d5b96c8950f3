"""Does it stay forgotten? Relearning, membership inference, a linear probe, and other masks than the trained one."""

from .card import audit_section
from .options import AuditArguments
from .run import run_audit

__all__ = ["AuditArguments", "audit_section", "run_audit"]
