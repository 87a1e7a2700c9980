"""How an input is run and judged; the inputs themselves are in the modules beside this package."""
