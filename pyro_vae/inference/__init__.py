"""Running a pair of programs: what its sites say, what is maximised, what is drawn."""
