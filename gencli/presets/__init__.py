"""Settings of published results: FAMILY-NAME.toml, used by `gencli train FAMILY DATA --preset NAME`."""
