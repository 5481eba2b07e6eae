"""Networks of measures, loaded from files whose sha256 was checked."""
