"""Show results: report.html, its charts, and the tables of `diptych evaluate`."""
