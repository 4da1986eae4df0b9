"""Methods for any task that has per-example losses."""
