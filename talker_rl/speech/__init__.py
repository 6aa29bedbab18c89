"""Speech generators: the protocol, the registry of families, and what families share."""
