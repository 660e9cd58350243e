"""Paths that more than one module refers to."""

PREDICT = "/predict"
ADMIN = "/admin/"  # prefix of the admin routes
COMPARE = "/admin/compare"
