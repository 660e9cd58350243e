"""The HTTP interface: routes, schemas, middleware and the response cache."""
