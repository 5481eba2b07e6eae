"""The networks of a training: loading, roles, calls, sampling."""
