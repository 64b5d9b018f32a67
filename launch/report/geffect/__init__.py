"""What the G-effect probe left in run directories, as pages: of one run in its report, of many compared."""
