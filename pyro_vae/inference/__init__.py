"""Running a pair of programs: its sites, the objectives, and its draws."""
