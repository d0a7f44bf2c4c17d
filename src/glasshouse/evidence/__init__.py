"""Evidence: claims and their verdicts, findings and checks, the ledger, figures, and the HTML report."""
