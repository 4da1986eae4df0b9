"""What a person reads at the end: the HTML page, the JSON file, the model card and the benchmark tables."""
