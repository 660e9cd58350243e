"""Score and rank labels, and measure the result: validation, `diptych evaluate`, reports and export."""
