"""The networks of a training: loading, calls, roles, sampling."""
