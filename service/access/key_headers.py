"""Names of the headers that carry keys."""

ADMIN_HEADER = "X-Admin-Key"
PREDICT_HEADER = "X-Api-Key"
