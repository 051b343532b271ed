"""Cost against work: sweeps over one quantity at a time, and the page that shows them beside their theory."""
