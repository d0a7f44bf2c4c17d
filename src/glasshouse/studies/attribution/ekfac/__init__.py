"""Study: EK-FAC."""
