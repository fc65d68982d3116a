"""Ways to start a script on one machine or on many."""
