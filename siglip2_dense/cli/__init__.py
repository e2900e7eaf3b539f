"""The command line: a file per verb, and the only place that reads ``sys.argv``."""
