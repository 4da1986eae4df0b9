"""Published protocols: their data, their metrics, and the published numbers beside ours."""
