"""The whole job: from a recipe to a run folder with a model, a verdict and a report in it."""
