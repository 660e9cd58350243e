"""Show the results of a load test: on the console and as an HTML page."""
