"""The families: one file each, named as on the command line; `gencli.registry` lists them."""
