"""The one trainer and the losses."""
