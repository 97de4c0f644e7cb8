"""What a run showed: studies of resolution, plots and reports."""
