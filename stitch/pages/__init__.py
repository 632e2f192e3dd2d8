"""Pages to look at: `report.html` beside a report, one file that needs no network."""
