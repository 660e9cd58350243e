"""Show results: report.html, and the tables of `diptych evaluate`."""
