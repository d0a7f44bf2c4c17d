"""Models of the market and the platform around AI models: entry, competition, recommenders.

Importing this package loads nothing heavy; each system lives in its own package. `glasshouse society --help`
is the command line.
"""
