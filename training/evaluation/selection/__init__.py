"""Select the score mix, the votes and the cone fraction of a model on its validation queries."""
