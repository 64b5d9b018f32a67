"""The tables of the G-effect probe as charts: of one run in its report, and of several runs compared."""
