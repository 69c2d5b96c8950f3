"""Does it stay forgotten? Relearning, membership inference, a linear probe, and other masks than the trained one."""

from .card import audit_section
from .run import AuditArguments, run_audit

__all__ = ["AuditArguments", "audit_section", "run_audit"]
