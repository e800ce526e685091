"""The YAML of a run: schema, loading and checks."""
