"""How well copies are told from benign images: measures, plots and reports."""
