"""The audit: which checks this access allows, run, rank, report; and the grader of the auditing game."""
