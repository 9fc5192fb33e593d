"""What a deep verification looks at, one file for each kind of thing, in memory that does not grow with the rows."""
