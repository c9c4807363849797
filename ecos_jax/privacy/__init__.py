"""Mechanisms, exact accounting, the client's ledger and the audit."""
